/*
 * work (C++) [rounds=100]: what programs do with the standard containers. A text is made, split into lines and words,
 * counted and indexed in maps, sorted, compared and joined. It checks its own results against what it knows of them,
 * and prints a checksum.
 */
#include "common.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

constexpr unsigned LINES = 60;
constexpr unsigned WORDS_OF_A_LINE = 12;
constexpr unsigned DIFFERENT_WORDS = 300;

struct Entry {
    std::uint64_t count = 0;
    std::vector<unsigned> lines;
};

/* Words of 3 to 14 letters, the first ones more often than the others. */
std::string word(std::uint64_t number)
{
    std::string text;
    for (std::uint64_t left = number * 2654435761u % 1000003 + 17; text.size() < 3 + number % 12; left = left * 31 + 7)
        text += static_cast<char>('a' + left % 26);
    return text;
}

std::string make_text(const std::vector<std::string> &vocabulary, std::uint64_t &random)
{
    std::string text;
    for (unsigned line = 0; line < LINES; line++) {
        for (unsigned place = 0; place < WORDS_OF_A_LINE; place++) {
            std::uint64_t any = next_random(&random);
            text += vocabulary[any % (1 + (any >> 32) % DIFFERENT_WORDS)];
            text += place + 1 < WORDS_OF_A_LINE ? ' ' : '\n';
        }
    }
    return text;
}

template <typename Each> void split(std::string_view text, char by, Each each)
{
    while (!text.empty()) {
        std::size_t end = std::min(text.find(by), text.size());
        each(text.substr(0, end));
        text.remove_prefix(std::min(end + 1, text.size()));
    }
}

/* How many letters differ at best, by the usual table of which two rows are kept. */
std::size_t distance(std::string_view one, std::string_view other)
{
    std::vector<std::size_t> above(other.size() + 1), row(other.size() + 1);
    for (std::size_t column = 0; column <= other.size(); column++)
        above[column] = column;
    for (std::size_t line = 1; line <= one.size(); line++) {
        row[0] = line;
        for (std::size_t column = 1; column <= other.size(); column++)
            row[column] = std::min({above[column] + 1, row[column - 1] + 1,
                                    above[column - 1] + (one[line - 1] != other[column - 1])});
        std::swap(above, row);
    }
    return above[other.size()];
}

struct Outcome {
    std::uint64_t checksum = 0;
    std::uint64_t allocations_at_least = 0;
};

std::uint64_t round_of_work(const std::vector<std::string> &vocabulary, std::uint64_t &random, Outcome &outcome)
{
    const std::string text = make_text(vocabulary, random);
    std::vector<std::string> lines;
    std::map<std::string, Entry, std::less<>> index;
    std::unordered_map<std::size_t, std::vector<std::unique_ptr<std::string>>> by_length;
    split(text, '\n', [&](std::string_view line) {
        lines.emplace_back(line);
        split(line, ' ', [&](std::string_view one) {
            auto found = index.find(one);
            if (found == index.end()) {
                found = index.emplace(one, Entry{}).first;
                by_length[one.size()].push_back(std::make_unique<std::string>(one));
            }
            found->second.count++;
            found->second.lines.push_back(lines.size());
        });
    });

    std::vector<std::string> sorted = lines;
    std::sort(sorted.begin(), sorted.end());
    std::uint64_t counted = 0, checksum = 0;
    for (const auto &[name, entry] : index) {
        if (entry.lines.size() != entry.count || name.empty())
            std::abort();
        counted += entry.count;
        checksum = checksum * 31 + entry.count * entry.lines.front();
    }
    for (auto &[length, words] : by_length)
        for (const auto &one : words)
            if (one->size() != length)
                std::abort();
    std::string joined;
    for (std::size_t place = 1; place < sorted.size(); place += 4) {
        checksum = checksum * 31 + distance(sorted[place - 1], sorted[place]);
        joined += sorted[place] + '\n';
    }
    if (counted != LINES * WORDS_OF_A_LINE || lines.size() != LINES || !std::is_sorted(sorted.begin(), sorted.end()))
        std::abort();
    /* Lines, and their copies to be sorted, are too long for what a string holds in itself; each word has a node of
       the map, a list of lines and a string by its length. */
    outcome.allocations_at_least += 2 * LINES + 3 * index.size();
    return checksum + joined.size();
}

} // namespace

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    std::uint64_t rounds = number(argc, argv, 1, 100);
    std::vector<std::string> vocabulary;
    for (unsigned number = 0; number < DIFFERENT_WORDS; number++)
        vocabulary.push_back(word(number));

    begin(options);
    std::uint64_t random = 1;
    Outcome outcome;
    for (std::uint64_t round = 0; round < rounds; round++)
        outcome.checksum = outcome.checksum * 31 + round_of_work(vocabulary, random, outcome);
    say_number("checksum", outcome.checksum);
    say_number("allocations_at_least", outcome.allocations_at_least);
    finish(options);
    return 0;
}
