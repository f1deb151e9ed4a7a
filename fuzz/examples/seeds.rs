//! Fills `corpus/TARGET` with what the fuzzers begin with: `cargo run -p fuzz --example seeds [FOLDER]`. Seeds are made by
//! the generator; with `TAPHOUSE_TESTDATA` set, packets of the captures in its folder `pcap` are added.

use fuzz::{TARGETS, seeds};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let folder =
        env::args_os().nth(1).map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"), PathBuf::from);
    for target in TARGETS {
        let made = seeds::made(target.name);
        write(&folder, target.name, &made)?;
        println!("{}: {} seeds made", target.name, made.len());
    }
    let Some(testdata) = env::var_os("TAPHOUSE_TESTDATA") else {
        println!("SKIPPED captures: TAPHOUSE_TESTDATA is not set");
        return Ok(());
    };
    for entry in fs::read_dir(Path::new(&testdata).join("pcap"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "pcap" || ending == "pcapng") {
            let of_file = seeds::of_capture(&fs::read(&path)?);
            println!("{}: {} seeds", path.display(), of_file.values().map(Vec::len).sum::<usize>());
            for (target, seeds) in of_file {
                write(&folder, target, &seeds)?;
            }
        }
    }
    Ok(())
}

/// Named by their content, so that the same seed is there once.
fn write(folder: &Path, target: &str, seeds: &[Vec<u8>]) -> io::Result<()> {
    let folder = folder.join(target);
    fs::create_dir_all(&folder)?;
    for seed in seeds {
        let mut hasher = DefaultHasher::new();
        seed.hash(&mut hasher);
        fs::write(folder.join(format!("seed-{:016x}", hasher.finish())), seed)?;
    }
    Ok(())
}
