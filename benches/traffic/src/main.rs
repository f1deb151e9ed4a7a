//! `traffic`: writes a generated capture and its truth.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use traffic::{Config, Generator, Sizes, pcap};

const HELP: &str = "\
Writes a deterministic capture: the same options give the same bytes.

usage: traffic --out FILE [options]
  --out FILE          where the capture goes (pcap, Ethernet)
  --truth FILE        where the truth goes (JSON), counted while generating
  --packets N         packets in all                         [1000000]
  --flows N           background flows                       [20000]
  --seed S            names the whole output                 [1]
  --duration SECONDS  time the traffic is spread over        [300]
  --start SECONDS     time of the first packet, since 1970   [1700000000]
  --sizes imix|imix741|N
                      IMIX, the simple IMIX of 7:4:1, or Ethernet frames of
                      N bytes                                [imix]
  --pad               frames of less than 60 bytes are padded
  --dns-packets-max N packets of the largest DNS flow        [no limit]
  --v6 RATIO          share of IPv6 flows                    [0.25]
  --udp RATIO         share of UDP flows                     [0.35]
  --retransmit RATIO  share of TCP segments sent twice       [0.01]
  --zipf EXPONENT     of flow sizes, 0 makes all equal       [1.1]
  --no-attacks        background only
  --nano              nanosecond time stamps
  --help              this text
";

struct Options {
    config: Config,
    out: PathBuf,
    truth: Option<PathBuf>,
    nano: bool,
}

fn main() -> ExitCode {
    let outcome = match parse(std::env::args().skip(1)) {
        Ok(Some(options)) => run(&options),
        Ok(None) => std::io::stdout().write_all(HELP.as_bytes()).map_err(|e| format!("cannot print the help: {e}")),
        Err(message) => Err(format!("{message}; see traffic --help")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    let mut generator = Generator::new(options.config.clone());
    let failed = |path: &PathBuf, e| format!("cannot write {}: {e}", path.display());
    pcap::write_pcap_file(&options.out, &mut generator, options.nano).map_err(|e| failed(&options.out, e))?;
    let truth = generator.into_truth();
    if let Some(path) = &options.truth {
        let file = File::create(path).map_err(|e| failed(path, e))?;
        let mut file = BufWriter::new(file);
        truth.write_json(&mut file).and_then(|()| file.flush()).map_err(|e| failed(path, e))?;
    }
    eprintln!(
        "{}: {} packets, {} frame bytes, {} TCP segments retransmitted, {} attacks",
        options.out.display(),
        truth.packets,
        truth.frame_bytes,
        truth.retransmits,
        truth.attacks.len()
    );
    Ok(())
}

/// The options, or `None` if only help is wanted.
fn parse(args: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
    let mut config = Config { truth: false, ..Config::default() };
    let (mut out, mut truth, mut nano) = (None, None, false);
    let mut args = args;
    while let Some(name) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--help" | "-h" => return Ok(None),
            "--no-attacks" => config.attacks = false,
            "--nano" => nano = true,
            "--pad" => config.pad = true,
            "--dns-packets-max" => config.dns_packets_max = number(&name, &value()?)?,
            "--out" => out = Some(PathBuf::from(value()?)),
            "--truth" => truth = Some(PathBuf::from(value()?)),
            "--packets" => config.packets = number(&name, &value()?)?,
            "--flows" => config.flows = number(&name, &value()?)?,
            "--seed" => config.seed = number(&name, &value()?)?,
            "--duration" => config.duration_ns = seconds(&name, &value()?)?,
            "--start" => config.start_ns = seconds(&name, &value()?)?,
            "--sizes" => config.sizes = sizes(&value()?)?,
            "--v6" => config.v6_ratio = within(&name, &value()?, 1.0)?,
            "--udp" => config.udp_ratio = within(&name, &value()?, 1.0)?,
            "--retransmit" => config.retransmit_ratio = within(&name, &value()?, 1.0)?,
            "--zipf" => config.zipf_exponent = within(&name, &value()?, 4.0)?,
            other => return Err(format!("unknown option '{other}'")),
        }
    }
    let out = out.ok_or("--out FILE is missing")?;
    config.truth = truth.is_some();
    Ok(Some(Options { config, out, truth, nano }))
}

fn number<T: FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.replace('_', "").parse().map_err(|_| format!("{name} takes a whole number, not '{text}'"))
}

fn seconds(name: &str, text: &str) -> Result<u64, String> {
    let whole: u64 = number(name, text)?;
    whole.checked_mul(1_000_000_000).ok_or_else(|| format!("{name} {text} is too many seconds"))
}

fn within(name: &str, text: &str, max: f64) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=max).contains(value));
    value.ok_or_else(|| format!("{name} takes a number from 0 to {max}, not '{text}'"))
}

fn sizes(text: &str) -> Result<Sizes, String> {
    match text {
        "imix" => Ok(Sizes::Imix),
        "imix741" => Ok(Sizes::Imix741),
        _ => match text.parse() {
            Ok(bytes) if (60..=9014).contains(&bytes) => Ok(Sizes::Fixed(bytes)),
            _ => Err(format!("--sizes takes 'imix', 'imix741' or frame bytes from 60 to 9014, not '{text}'")),
        },
    }
}
