//! `meshring`: the command line and the control process.

use std::process::ExitCode;

fn main() -> ExitCode {
    meshring_ctl::command::main()
}
