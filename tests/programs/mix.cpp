/*
 * mix (C++) [threads=1] [rounds=200] [seed=1]: every form of new and delete, the containers, smart pointers and
 * exceptions, in threads that hand objects on. What the containers allocate inside is the library's affair, so the
 * program states only the blocks it leaves alive on purpose, and a checksum over everything it computed.
 */
#include "common.h"

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

namespace {

struct Kept {
    std::uint64_t values[15];
};

struct alignas(64) KeptAligned {
    std::uint64_t values[16];
};

struct Shape {
    virtual ~Shape() = default;
    virtual std::uint64_t area() const = 0;
};

struct Square : Shape {
    std::uint64_t side;
    explicit Square(std::uint64_t side) : side(side) {}
    std::uint64_t area() const override { return side * side; }
};

struct Picture : Shape {
    std::vector<std::unique_ptr<Shape>> parts;
    std::uint64_t area() const override
    {
        std::uint64_t sum = 0;
        for (const auto &part : parts)
            sum += part->area();
        return sum;
    }
};

struct Inbox {
    std::mutex lock;
    std::vector<std::unique_ptr<Shape>> shapes;
};

struct Result {
    std::uint64_t checksum = 0;
    std::uint64_t kept_blocks = 0;
    std::uint64_t kept_bytes = 0;
    std::uint64_t exceptions = 0;
};

/* Volatile, so that no compiler knows this size to be impossible. */
volatile std::size_t impossible = SIZE_MAX / 4;

template <typename T> void keep(Result &result, T *object, std::size_t bytes)
{
    KEEP(object);
    result.kept_blocks++;
    result.kept_bytes += bytes;
}

std::uint64_t raw_forms(std::uint64_t &random)
{
    std::size_t size = 1 + next_random(&random) % 500;
    auto *one = new std::uint64_t(size);
    auto *many = new unsigned char[size]();
    auto *aligned = new KeptAligned{};
    auto *quiet = new (std::nothrow) char[size];
    auto *objects = new std::string[3]; /* an array cookie: the pointer in use is not the allocator's */
    objects[1].assign(size, 'x');
    void *plain = ::operator new(size);
    KEEP(aligned);
    KEEP(quiet);
    KEEP(plain);
    std::uint64_t sum = *one + many[size - 1] + objects[1].size();
    delete one;
    delete[] many;
    delete aligned;
    delete[] quiet;
    delete[] objects;
    ::operator delete(plain, size);
    return sum;
}

std::uint64_t containers(std::uint64_t &random)
{
    std::map<std::string, std::vector<std::uint64_t>> ordered;
    std::unordered_map<std::uint64_t, std::shared_ptr<std::string>> hashed;
    for (unsigned item = 0; item < 20; item++) {
        std::uint64_t value = next_random(&random) % 1000;
        ordered["a key that is too long for the string itself " + std::to_string(value)].push_back(value);
        hashed[value] = std::make_shared<std::string>(value, 'y');
    }
    std::uint64_t sum = 0;
    for (const auto &[key, values] : ordered)
        sum += key.size() * values.size();
    for (const auto &[key, text] : hashed)
        sum += text->size() ^ key;
    return sum;
}

std::unique_ptr<Shape> draw(std::uint64_t &random)
{
    auto picture = std::make_unique<Picture>();
    for (unsigned part = 0; part < 5; part++)
        picture->parts.push_back(std::make_unique<Square>(next_random(&random) % 100));
    return picture;
}

std::uint64_t exceptions(std::uint64_t &random, Result &result)
{
    std::uint64_t sum = 0;
    try {
        std::vector<std::uint64_t> unwound(next_random(&random) % 100 + 1, 7);
        throw std::runtime_error("a message that is too long for the string itself, " + std::to_string(unwound.size()));
    } catch (const std::runtime_error &error) {
        sum += std::string(error.what()).size();
        result.exceptions++;
    }
    try {
        KEEP(::operator new(impossible));
        std::abort();
    } catch (const std::bad_alloc &) {
        result.exceptions++;
    }
    if (::operator new(impossible, std::nothrow) != nullptr)
        std::abort();
    return sum;
}

void work(std::uint64_t rounds, std::uint64_t random, Inbox &next, Result &result)
{
    for (std::uint64_t round = 0; round < rounds; round++) {
        result.checksum += raw_forms(random);
        result.checksum += containers(random);
        auto shape = draw(random);
        result.checksum += shape->area();
        {
            std::lock_guard<std::mutex> guard(next.lock);
            next.shapes.push_back(std::move(shape));
        }
        if (round % 10 == 0)
            result.checksum += exceptions(random, result);
        if (round % 20 == 0) {
            keep(result, new Kept{}, sizeof(Kept));
            keep(result, new KeptAligned{}, sizeof(KeptAligned));
            keep(result, new char[777], 777);
        }
    }
}

} // namespace

int main(int argc, char **argv)
{
    struct options options = take_options(&argc, argv);
    std::uint64_t threads = number(argc, argv, 1, 1);
    std::uint64_t rounds = number(argc, argv, 2, 200);
    std::uint64_t seed = number(argc, argv, 3, 1);
    if (threads == 0)
        return 2;

    begin(options);
    Result sum;
    {
        std::vector<Inbox> inboxes(threads);
        std::vector<Result> results(threads);
        std::vector<std::thread> handles;
        for (std::uint64_t index = 0; index < threads; index++) {
            std::uint64_t random = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) + index * 2 + 1;
            Inbox &next = inboxes[(index + 1) % threads];
            if (threads == 1)
                work(rounds, random, next, results[index]);
            else
                handles.emplace_back(work, rounds, random, std::ref(next), std::ref(results[index]));
        }
        for (auto &handle : handles)
            handle.join();
        for (const auto &result : results) {
            sum.checksum += result.checksum;
            sum.kept_blocks += result.kept_blocks;
            sum.kept_bytes += result.kept_bytes;
            sum.exceptions += result.exceptions;
        }
        for (const auto &inbox : inboxes) /* made by one thread, freed here by another */
            for (const auto &shape : inbox.shapes)
                sum.checksum += shape->area();
    }
    say_number("kept_blocks", sum.kept_blocks);
    say_number("kept_bytes", sum.kept_bytes);
    say_number("exceptions", sum.exceptions);
    say_number("checksum", sum.checksum);
    finish(options);
    return 0;
}
