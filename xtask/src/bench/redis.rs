//! redis-server, driven by redis-benchmark on the loopback interface.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use memscope_tests::resources;

use super::process::{Output, Process};
use super::workloads::Work;
use crate::process::output;

/// How long a server takes to listen, under the slowest tracer.
const START_DEADLINE: Duration = Duration::from_secs(60);
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: u64 = 1 << 20;
/// What is asked for; each as often. The values of `set` and the items of `lpush` are blocks.
const COMMANDS: &str = "set,lpush,get";
const COMMAND_KINDS: u64 = 3;
const ALLOCATING_KINDS: u64 = 2;

/// A server that nobody but this measurement talks to.
pub(super) struct Redis {
    server: Process,
    port: u16,
    pid: u32,
    requests: u64,
}

impl Redis {
    /// The server's own part of a command line; it keeps nothing on disk.
    pub(super) fn command(mut command: Command, folder: &Path, port: u16) -> Command {
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(folder);
        command
    }

    /// A port that was free a moment ago.
    pub(super) fn free_port() -> Result<u16> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback")?;
        Ok(listener.local_addr().context("a bound port has a number")?.port())
    }

    /// Waits until the server answers.
    pub(super) fn ready(mut server: Process, port: u16, requests: u64) -> Result<Self> {
        let begun = Instant::now();
        let pid = loop {
            match ask(port, "INFO server") {
                Ok(info) => break number_in(&info, "process_id")?,
                Err(error) if begun.elapsed() > START_DEADLINE || server.has_ended() => {
                    return Err(error.context(format!("no redis-server: {}", server.said())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let pid = u32::try_from(pid).context("a pid fits 32 bits")?;
        server.inner = (server.pid() != pid).then_some(pid);
        Ok(Self { server, port, pid, requests })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn work(&mut self) -> Result<Work> {
        let served = || number_in(&ask(self.port, "INFO stats")?, "total_commands_processed");
        let cpu = || resources::cpu_ns(self.pid).context("the server's processor time");
        let (served_before, cpu_before, begun) = (served()?, cpu()?, Instant::now());
        let mut benchmark = Command::new("redis-benchmark");
        benchmark.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--csv"]);
        // Few clients, because the machine may have few processors; keys and values by chance.
        benchmark.args(["-t", COMMANDS, "-c", "10", "-r", "10000", "-d", "64"]);
        let table = output(benchmark.args(["-n", &self.requests.to_string()]))?;
        let (wall_ns, cpu_ns) = (begun.elapsed().as_nanos() as u64, cpu()? - cpu_before);
        let asked = self.requests * COMMAND_KINDS;
        let served = served()? - served_before;
        if served < asked {
            bail!("redis-server served {served} of {asked} requests");
        }
        Ok(Work {
            cost_ns: ns_per_request(&table)?,
            units: asked,
            wall_ns,
            cpu_ns,
            allocations_at_least: self.requests * ALLOCATING_KINDS,
            checksum: None,
        })
    }

    pub(super) fn finish(self) -> Result<Output> {
        // The connection ends without an answer, as the server does.
        let mut stream = connect(self.port)?;
        stream.write_all(b"SHUTDOWN NOSAVE\r\n").context("cannot ask redis-server to end")?;
        self.server.finish()
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("redis-server does not listen")?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE)).context("a socket has a deadline")?;
    Ok(stream)
}

/// Sends an inline command; returns the text it is answered with.
fn ask(port: u16, command: &str) -> Result<String> {
    let mut stream = connect(port)?;
    stream.write_all(format!("{command}\r\n").as_bytes()).context("cannot ask redis-server")?;
    let mut reader = BufReader::new(stream);
    let mut length = String::new();
    reader.by_ref().take(MAX_ANSWER_BYTES).read_line(&mut length).context("no answer")?;
    let bytes = length.trim_end().strip_prefix('$').and_then(|length| length.parse::<u64>().ok());
    let bytes = bytes.filter(|bytes| *bytes <= MAX_ANSWER_BYTES);
    let bytes = bytes.with_context(|| format!("redis-server answers {command} by {length:?}"))?;
    let mut text = Vec::new();
    reader.take(bytes).read_to_end(&mut text).context("cannot read an answer")?;
    if text.len() as u64 != bytes {
        bail!("redis-server's answer to {command} ends after {} of {bytes} bytes", text.len());
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// The value of a line `key:value`.
fn number_in(info: &str, key: &str) -> Result<u64> {
    let mut lines = info.lines().filter_map(|line| line.split_once(':'));
    let value = lines.find(|(name, _)| *name == key).map(|(_, value)| value.trim().parse());
    value.and_then(Result::ok).with_context(|| format!("redis-server says no {key}"))
}

/// Of redis-benchmark's table: the mean over all kinds of requests, of which there were equally many.
fn ns_per_request(table: &str) -> Result<f64> {
    let rates: Vec<f64> = table
        .lines()
        .filter(|line| !line.starts_with("\"test\""))
        .filter_map(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok())
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .collect();
    if rates.len() as u64 != COMMAND_KINDS {
        bail!("redis-benchmark printed {} results of {COMMAND_KINDS}: {table}", rates.len());
    }
    Ok(rates.iter().map(|rate| 1e9 / rate).sum::<f64>() / rates.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_a_request_is_made_of_the_rates() {
        let table = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"100000.00\",\"0.1\"\n\
                     \"LPUSH\",\"50000.00\",\"0.2\"\n\"GET\",\"200000.00\",\"0.1\"\n";
        assert!(
            (ns_per_request(table).unwrap() - (10_000.0 + 20_000.0 + 5_000.0) / 3.0).abs() < 0.01
        );
        for bad in ["", "\"SET\",\"0.00\",\"1\"\n", &table.replace("50000.00", "nan")] {
            assert!(ns_per_request(bad).is_err(), "{bad}");
        }
    }

    /// Asks a server that answers once, so.
    fn asked(answer: &'static str) -> Result<String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&mut stream).read_line(&mut request).unwrap();
            assert_eq!(request, "INFO stats\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let answered = ask(port, "INFO stats");
        server.join().unwrap();
        answered
    }

    #[test]
    fn an_answer_is_as_long_as_it_says_within_limits() {
        assert_eq!(asked("$7\r\na:1\r\nb:\r\n").unwrap(), "a:1\r\nb:");
        for bad in ["$9\r\nshort", "$99999999999\r\nx", "$-1\r\n", "-ERR no\r\n", ""] {
            assert!(asked(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_of_the_server_are_found_by_their_key() {
        let info = "# Server\r\nprocess_id:17\r\nrun_id:abc\r\n";
        assert_eq!(number_in(info, "process_id").unwrap(), 17);
        assert!(number_in(info, "run_id").is_err());
        assert!(number_in(info, "process").is_err());
    }
}
