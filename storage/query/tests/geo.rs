//! `country`, `asn` and `as_org`, looked up in files made here.

mod common;

use common::{Flows, addr, one, sql, sql_error};
use query::{Engine, GeoFiles, QueryError, QueryLimits};
use std::fs;
use std::sync::LazyLock;
use wire::Addr;

static FLOWS: LazyLock<Flows> = LazyLock::new(|| Flows::sample(0x6e0));

enum Value {
    Text(&'static str),
    Number(u64, u8),
    Map(Vec<(&'static str, Value)>),
    List(Vec<Value>),
}

use Value::{List, Map, Number, Text};

/// Types of the MaxMind DB file format, version 2.0.
const UINT16: u8 = 5;
const UINT32: u8 = 6;
const UINT64: u8 = 9;

fn control(out: &mut Vec<u8>, kind: u8, size: usize) {
    let (first, second) = if kind < 8 { (kind << 5, None) } else { (0, Some(kind - 7)) };
    out.push(first | size.min(29) as u8);
    out.extend(second);
    if size >= 29 {
        out.push((size - 29) as u8);
    }
}

fn encode(out: &mut Vec<u8>, value: &Value) {
    match value {
        Text(text) => {
            control(out, 2, text.len());
            out.extend(text.as_bytes());
        }
        Number(number, kind) => {
            let bytes = number.to_be_bytes();
            let used = &bytes[number.leading_zeros() as usize / 8..];
            control(out, *kind, used.len());
            out.extend(used);
        }
        Map(pairs) => {
            control(out, 7, pairs.len());
            for (key, value) in pairs {
                encode(out, &Text(key));
                encode(out, value);
            }
        }
        List(values) => {
            control(out, 11, values.len());
            values.iter().for_each(|value| encode(out, value));
        }
    }
}

/// A file with an IPv6 tree, in which IPv4 lies under `::/96`.
fn mmdb(kind: &'static str, networks: &[(&str, usize, Value)]) -> Vec<u8> {
    #[derive(Clone, Copy)]
    enum Record {
        Nothing,
        Node(usize),
        Data(usize),
    }
    let mut nodes = vec![[Record::Nothing; 2]];
    let mut data = Vec::new();
    for (network, length, value) in networks {
        let offset = data.len();
        encode(&mut data, value);
        let Addr(mut bytes) = addr(network);
        let mut length = *length;
        if bytes[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff] {
            bytes[10..12].fill(0);
            length += 96;
        }
        let mut at = 0;
        for bit in 0..length {
            let side = usize::from(bytes[bit / 8] >> (7 - bit % 8) & 1);
            if bit + 1 == length {
                nodes[at][side] = Record::Data(offset);
            } else if let Record::Node(next) = nodes[at][side] {
                at = next;
            } else {
                nodes.push([Record::Nothing; 2]);
                nodes[at][side] = Record::Node(nodes.len() - 1);
                at = nodes.len() - 1;
            }
        }
    }
    let mut file = Vec::new();
    for record in nodes.iter().flatten() {
        let number = match record {
            Record::Nothing => nodes.len(),
            Record::Node(node) => *node,
            Record::Data(offset) => nodes.len() + 16 + offset,
        };
        file.extend(&(number as u32).to_be_bytes()[1..]);
    }
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    let metadata = Map(vec![
        ("node_count", Number(nodes.len() as u64, UINT32)),
        ("record_size", Number(24, UINT16)),
        ("ip_version", Number(6, UINT16)),
        ("database_type", Text(kind)),
        ("languages", List(vec![Text("en")])),
        ("binary_format_major_version", Number(2, UINT16)),
        ("binary_format_minor_version", Number(0, UINT16)),
        ("build_epoch", Number(1_767_225_600, UINT64)),
        ("description", Map(vec![("en", Text("made for a test"))])),
    ]);
    encode(&mut file, &metadata);
    file
}

fn countries(of_ten: &'static str) -> Vec<u8> {
    let code = |key, code| Map(vec![(key, Map(vec![("iso_code", Text(code))]))]);
    mmdb(
        "GeoLite2-Country",
        &[
            ("10.0.0.0", 8, code("country", of_ten)),
            ("192.168.1.0", 24, code("registered_country", "NL")),
            ("2001:db8::", 32, code("country", "JP")),
        ],
    )
}

fn systems() -> Vec<u8> {
    let of = |number, name| {
        let number = Number(number, UINT32);
        Map(vec![("autonomous_system_number", number), ("autonomous_system_organization", Text(name))])
    };
    mmdb(
        "GeoLite2-ASN",
        &[
            ("10.0.0.0", 16, of(64_500, "Ten and nothing")),
            ("2001:db8::", 32, of(4_200_000_001, "A network whose name is rather long")),
        ],
    )
}

fn engine(files: &GeoFiles) -> Result<Engine, QueryError> {
    Engine::with_geo(FLOWS.store.reader(), QueryLimits::default(), files)
}

#[test]
fn addresses_have_countries_and_systems() {
    let dir = tempfile::tempdir().unwrap();
    let files = GeoFiles { country: Some(dir.path().join("country.mmdb")), asn: Some(dir.path().join("asn.mmdb")) };
    fs::write(files.country.as_ref().unwrap(), countries("DE")).unwrap();
    fs::write(files.asn.as_ref().unwrap(), systems()).unwrap();
    let engine = engine(&files).unwrap();
    let count = |of: &dyn Fn(Addr) -> bool| FLOWS.rows.iter().filter(|r| of(r.src_ip)).count().to_string();
    let asked = |filter: &str| one(&engine, &format!("SELECT count(*) FROM flows WHERE {filter}"));
    let ten = |x: Addr| x.0[12] == 10 && x.0[..10] == [0; 10];
    let v6 = |x: Addr| x.0[..4] == [0x20, 0x01, 0x0d, 0xb8];
    assert_eq!(asked("country(src_ip) = 'DE'"), count(&ten));
    assert_eq!(asked("country(src_ip) = 'JP'"), count(&v6));
    assert_eq!(asked("country(src_ip) = 'NL'"), count(&|x| x.0[12..15] == [192, 168, 1]));
    assert_eq!(asked("country(src_ip) IS NULL"), count(&|x| x.0[0] == 0xfe));
    assert_eq!(asked("asn(src_ip) = 64500"), count(&|x| ten(x) && x.0[13] == 0));
    assert_eq!(asked("asn(src_ip) > 4200000000"), count(&v6));
    assert_eq!(
        one(
            &engine,
            "SELECT country('10.9.9.9'), asn('10.0.7.7'), as_org(ip('2001:db8::5')), country(NULL), asn('::1')"
        ),
        "DE,64500,A network whose name is rather long,,"
    );
    assert_eq!(
        sql(&engine, "SELECT DISTINCT country(src_ip) AS c FROM flows WHERE country(src_ip) IS NOT NULL ORDER BY c"),
        ["DE", "JP", "NL"]
    );
    assert!(sql_error(&engine, "SELECT country('nowhere')").contains("'nowhere' is not an IPv4 or IPv6 address"));

    // Replaced as such files are: another one under the same name.
    fs::write(dir.path().join("new"), [countries("FR"), vec![]].concat()).unwrap();
    fs::rename(dir.path().join("new"), files.country.as_ref().unwrap()).unwrap();
    assert_eq!(one(&engine, "SELECT country('10.0.0.1')"), "FR");
    // A broken one changes nothing.
    fs::write(files.country.as_ref().unwrap(), b"half a file").unwrap();
    assert_eq!(one(&engine, "SELECT country('10.0.0.1')"), "FR");
    fs::remove_file(files.country.as_ref().unwrap()).unwrap();
    assert_eq!(one(&engine, "SELECT country('10.0.0.1')"), "FR");
}

#[test]
fn without_files_a_sentence_says_which_key_to_set() {
    let engine = engine(&GeoFiles::default()).unwrap();
    for (text, key) in [
        ("SELECT country(src_ip) FROM flows", "query.geoip.country"),
        ("SELECT count(*) FROM flows WHERE asn(dst_ip) = 1", "query.geoip.asn"),
        ("SELECT as_org('10.0.0.1')", "query.geoip.asn"),
    ] {
        let error = sql_error(&engine, text);
        assert!(error.contains("needs a MaxMind DB file, and none is configured (line 1, column "), "{text}: {error}");
        assert!(error.contains(key), "{text}: {error}");
    }
}

#[test]
fn a_file_that_is_none_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("country.mmdb");
    let open = || engine(&GeoFiles { country: Some(path.clone()), asn: None }).unwrap_err().to_string();
    assert!(open().starts_with(&format!("{}: ", path.display())), "{}", open());
    fs::write(&path, b"no such file format").unwrap();
    assert!(open().contains("name a MaxMind DB file (.mmdb), or leave its key out"), "{}", open());
}
