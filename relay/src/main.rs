//! `belayd`: the relay daemon and its operator's commands.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
