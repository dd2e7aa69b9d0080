//! The memscope command.

use std::{io, process::ExitCode};

use clap::Parser as _;
use memscope::{
    cli::{Cli, Command},
    commands,
    target::DescriptionError,
};

/// Linked in, so that probes on the system's allocator are never fed by memscope.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for a command line that makes no sense, as clap's own.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::set_max_level(match cli.verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    });
    if log::set_logger(&StandardError).is_err() {
        eprintln!("memscope: messages are going elsewhere");
    }
    let outcome = match &cli.command {
        // The eBPF side's own messages: none, or all up to debug.
        Command::Trace(options) => {
            commands::trace::run(options, if cli.verbose > 1 { 4 } else { 0 })
        }
        Command::Report(options) => commands::report::run(options),
        Command::Export(options) => match options.contradiction() {
            Some(contradiction) => {
                eprintln!("memscope: {contradiction}");
                return ExitCode::from(EXIT_USAGE);
            }
            None => commands::export::run(options),
        },
        Command::Dump(options) => commands::dump::run(options),
        Command::Verify(options) => commands::verify::run(options),
        Command::Doctor(options) => commands::doctor::run(options),
        Command::ResumeGuard => commands::trace::run_guard().map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memscope: {}", memscope::text::harmless(&format!("{error:#}")));
            // What was described is a part of the command line.
            let is_usage = error.is::<DescriptionError>();
            if is_usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// Whoever read the output has seen enough (`| head`).
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json =
            cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

/// Messages of this and other crates, a line each.
struct StandardError;

impl log::Log for StandardError {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Other crates' details are of use to their authors only.
        let own = metadata.target().starts_with("memscope");
        metadata.level() <= log::max_level() && (own || metadata.level() <= log::Level::Warn)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            eprintln!(
                "memscope: {level}: {}",
                memscope::text::harmless(&record.args().to_string())
            );
        }
    }

    fn flush(&self) {}
}
