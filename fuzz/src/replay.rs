use std::process::ExitCode;

/// Runs the files named on the command line through `attack`, saying which: what a finding is looked at with, on any
/// toolchain and with a debugger.
pub fn replay(attack: fn(&[u8])) -> ExitCode {
    let files: Vec<_> = std::env::args_os().skip(1).collect();
    if files.is_empty() {
        eprintln!("give the files to run; to fuzz: cargo +nightly fuzz run TARGET");
        return ExitCode::FAILURE;
    }
    for path in files {
        match std::fs::read(&path) {
            Ok(bytes) => {
                eprintln!("{}: {} bytes", path.display(), bytes.len());
                attack(&bytes);
            }
            Err(error) => {
                eprintln!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
