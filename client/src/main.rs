//! `belay`: the client's commands.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
