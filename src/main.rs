//! The `ringpost` command: arguments to a command, its result to an exit code.

fn main() {}
