//! Keys: some fields of who sent a packet to whom, or of who began a flow with whom, as five words.

use crate::{FieldValue, KeyFields, TaskError};
use std::fmt;
use std::str::FromStr;
use wire::{Addr, Direction, FlowKey};

/// Words of a key. All keys have the same places for the same fields, and zeros where they do not have one.
pub(crate) const WORDS: usize = 5;
pub(crate) type Key = [u64; WORDS];

/// What is counted: packets as they pass, or flows as they begin and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Packets. Who sent them is `src_ip`.
    Packets,
    /// Flows. Who began them is `originator`.
    Flows,
}

/// A field of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    SrcIp,
    DstIp,
    SrcPort,
    DstPort,
    Originator,
    Responder,
    OriginatorPort,
    ResponderPort,
    Proto,
    Vlan,
}

impl Field {
    const ALL: [Field; 10] = [
        Field::SrcIp,
        Field::DstIp,
        Field::SrcPort,
        Field::DstPort,
        Field::Originator,
        Field::Responder,
        Field::OriginatorPort,
        Field::ResponderPort,
        Field::Proto,
        Field::Vlan,
    ];

    const fn name(self) -> &'static str {
        match self {
            Field::SrcIp => "src_ip",
            Field::DstIp => "dst_ip",
            Field::SrcPort => "src_port",
            Field::DstPort => "dst_port",
            Field::Originator => "originator",
            Field::Responder => "responder",
            Field::OriginatorPort => "originator_port",
            Field::ResponderPort => "responder_port",
            Field::Proto => "proto",
            Field::Vlan => "vlan",
        }
    }

    /// Which view has it; `None`: both.
    const fn view(self) -> Option<View> {
        match self {
            Field::SrcIp | Field::DstIp | Field::SrcPort | Field::DstPort => Some(View::Packets),
            Field::Originator | Field::Responder | Field::OriginatorPort | Field::ResponderPort => Some(View::Flows),
            Field::Proto | Field::Vlan => None,
        }
    }

    /// The bits of a key it lies in.
    const fn mask(self) -> Key {
        match self {
            Field::SrcIp | Field::Originator => [!0, !0, 0, 0, 0],
            Field::DstIp | Field::Responder => [0, 0, !0, !0, 0],
            Field::SrcPort | Field::OriginatorPort => [0, 0, 0, 0, 0xffff],
            Field::DstPort | Field::ResponderPort => [0, 0, 0, 0, 0xffff << 16],
            Field::Proto => [0, 0, 0, 0, 0xff << 32],
            Field::Vlan => [0, 0, 0, 0, 0xffff << 40],
        }
    }

    const fn is_address(self) -> bool {
        matches!(self, Field::SrcIp | Field::DstIp | Field::Originator | Field::Responder)
    }
}

/// Bits of an address that belong to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    v4: u8,
    v6: u8,
}

impl Prefix {
    const WHOLE: Prefix = Prefix { v4: 32, v6: 128 };

    fn mask(self, high: u64, low: u64) -> [u64; 2] {
        let bits = match high == 0 && low >> 32 == 0xffff {
            true => 96 + u32::from(self.v4),
            false => u32::from(self.v6),
        };
        let mask = (!0_u128).checked_shl(128 - bits).unwrap_or(0);
        [high & (mask >> 64) as u64, low & mask as u64]
    }
}

/// The fields of a key, as the configuration and the command line name them: `src_ip`, `src_ip,dst_port,proto`, or with
/// prefixes `src_ip/24` (the first 24 bits of IPv4 addresses, IPv6 ones whole), `src_ip/48` (the other way round), and
/// `src_ip/24/48`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpec {
    fields: Vec<(Field, Prefix)>,
    mask: Key,
    /// Of the two addresses, where one is not taken whole.
    prefixes: Option<[Prefix; 2]>,
}

impl KeySpec {
    /// A key of no field: everything is one.
    pub const fn nothing() -> KeySpec {
        KeySpec { fields: Vec::new(), mask: [0; WORDS], prefixes: None }
    }

    /// The key of these fields.
    ///
    /// # Errors
    /// A field is unknown or there twice, a prefix is too long, or fields of packets and of flows are mixed.
    pub fn new<S: AsRef<str>>(names: &[S]) -> Result<KeySpec, TaskError> {
        let mut spec = KeySpec::nothing();
        let mut prefixes = [Prefix::WHOLE; 2];
        for text in names {
            let (field, prefix) = parse_field(text.as_ref().trim())?;
            if spec.has(field) {
                return Err(TaskError::new("key", field.name(), "there twice; name each field once"));
            }
            let mask = field.mask();
            if prefix != Prefix::WHOLE {
                prefixes[usize::from(mask[0] == 0)] = prefix;
                spec.prefixes = Some(prefixes);
            }
            spec.mask.iter_mut().zip(mask).for_each(|(all, one)| *all |= one);
            spec.fields.push((field, prefix));
        }
        // Once all are known.
        spec.prefixes = spec.prefixes.map(|_| prefixes);
        let views = |view| spec.fields.iter().find(|(field, _)| field.view() == Some(view));
        if let (Some((packet, _)), Some((flow, _))) = (views(View::Packets), views(View::Flows)) {
            let both = format!("{} and {}", packet.name(), flow.name());
            return Err(TaskError::new(
                "key",
                both,
                "of packets and of flows: take either src_ip, dst_ip, src_port, dst_port or originator, responder, \
                 originator_port, responder_port",
            ));
        }
        Ok(spec)
    }

    /// Whether it has no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// What it is a key of; `None` if its fields are of both.
    pub fn view(&self) -> Option<View> {
        self.fields.iter().find_map(|(field, _)| field.view())
    }

    /// Whether an address of it is not whole.
    pub fn has_prefix(&self) -> bool {
        self.prefixes.is_some()
    }

    /// Names of its fields, without prefixes.
    pub fn names(&self) -> Vec<&'static str> {
        self.fields.iter().map(|(field, _)| field.name()).collect()
    }

    fn has(&self, wanted: Field) -> bool {
        self.fields.iter().any(|(field, _)| *field == wanted)
    }

    fn prefix(&self, wanted: Field) -> Option<Prefix> {
        self.fields.iter().find(|(field, _)| *field == wanted).map(|(_, prefix)| *prefix)
    }

    /// Whether every key of this one is made of one of `finer`: it has all fields, and as much of each address.
    pub fn is_part_of(&self, finer: &KeySpec) -> bool {
        self.fields.iter().all(|(field, prefix)| {
            finer.prefix(*field).is_some_and(|finer| finer.v4 >= prefix.v4 && finer.v6 >= prefix.v6)
        })
    }

    /// Whether it has the same fields, in whatever order.
    pub fn is_same(&self, other: &KeySpec) -> bool {
        self.is_part_of(other) && other.is_part_of(self)
    }

    /// The fields of this key out of a whole one.
    #[inline]
    pub(crate) fn cut(&self, key: &Key) -> Key {
        let mut cut: Key = std::array::from_fn(|word| key[word] & self.mask[word]);
        if let Some([from, to]) = &self.prefixes {
            [cut[0], cut[1]] = from.mask(cut[0], cut[1]);
            [cut[2], cut[3]] = to.mask(cut[2], cut[3]);
        }
        cut
    }

    /// The same fields with addresses cut to the prefixes that the key has.
    ///
    /// # Errors
    /// A field has no value, or one that the key does not have has.
    pub fn network(&self, values: &KeyFields) -> Result<KeyFields, TaskError> {
        Ok(self.fields(&self.cut(&self.key(values)?)))
    }

    /// The fields' values.
    pub(crate) fn fields(&self, key: &Key) -> KeyFields {
        let mut fields = KeyFields::default();
        for (field, _) in &self.fields {
            match field {
                Field::SrcIp => fields.src_ip = Some(addr_of(key[0], key[1])),
                Field::DstIp => fields.dst_ip = Some(addr_of(key[2], key[3])),
                Field::Originator => fields.originator = Some(addr_of(key[0], key[1])),
                Field::Responder => fields.responder = Some(addr_of(key[2], key[3])),
                Field::SrcPort => fields.src_port = Some(key[4] as u16),
                Field::DstPort => fields.dst_port = Some((key[4] >> 16) as u16),
                Field::OriginatorPort => fields.originator_port = Some(key[4] as u16),
                Field::ResponderPort => fields.responder_port = Some((key[4] >> 16) as u16),
                Field::Proto => fields.proto = Some((key[4] >> 32) as u8),
                Field::Vlan => fields.vlan = Some((key[4] >> 40) as u16),
            }
        }
        fields
    }

    /// The key with these values, addresses cut to its prefixes.
    ///
    /// # Errors
    /// A field of it has no value, or there is a value for another one.
    pub(crate) fn key(&self, values: &KeyFields) -> Result<Key, TaskError> {
        let mut key = [0; WORDS];
        for (field, (_, value)) in Field::ALL.into_iter().zip(values.values()) {
            match (self.has(field), value) {
                (true, None) => return Err(TaskError::new("key", field.name(), "without a value; give it one")),
                (false, Some(value)) => {
                    let told = format!("no field of the key {self}, but has the value {value}; leave it out");
                    return Err(TaskError::new("key", field.name(), told));
                }
                (_, Some(FieldValue::Address(address))) => {
                    let at = if field.mask()[0] == 0 { 2 } else { 0 };
                    [key[at], key[at + 1]] = words_of(address);
                }
                (_, Some(FieldValue::Number(number))) => {
                    key[4] |= u64::from(number) << field.mask()[4].trailing_zeros();
                }
                (false, None) => {}
            }
        }
        Ok(self.cut(&key))
    }
}

impl fmt::Display for KeySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (field, prefix)) in self.fields.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma}{}", field.name())?;
            match (prefix.v4, prefix.v6) {
                (32, 128) => {}
                (v4, 128) => write!(f, "/{v4}")?,
                (32, v6) if v6 > 32 => write!(f, "/{v6}")?,
                (v4, v6) => write!(f, "/{v4}/{v6}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for KeySpec {
    type Err = TaskError;

    fn from_str(text: &str) -> Result<KeySpec, TaskError> {
        match text.trim() {
            "" => Ok(KeySpec::nothing()),
            text => KeySpec::new(&text.split(',').collect::<Vec<_>>()),
        }
    }
}

fn parse_field(text: &str) -> Result<(Field, Prefix), TaskError> {
    let mut parts = text.split('/');
    let name = parts.next().unwrap_or_default();
    let Some(field) = Field::ALL.into_iter().find(|field| field.name() == name) else {
        let known: Vec<&str> = Field::ALL.into_iter().map(Field::name).collect();
        return Err(TaskError::new("key", text, format!("no field of a key; there are {}", known.join(", "))));
    };
    let lengths: Vec<&str> = parts.collect();
    if lengths.is_empty() {
        return Ok((field, Prefix::WHOLE));
    }
    let refuse = || {
        let allowed =
            "a prefix: an address may have /0 to /32 for IPv4, /33 to /128 for IPv6, or both, as in src_ip/24/48";
        TaskError::new("key", text, allowed)
    };
    let lengths = lengths.iter().map(|length| length.parse::<u8>().ok().filter(|bits| *bits <= 128));
    let lengths = lengths.collect::<Option<Vec<u8>>>().filter(|_| field.is_address()).ok_or_else(refuse)?;
    let prefix = match lengths[..] {
        [v4] if v4 <= 32 => Prefix { v4, v6: 128 },
        [v6] => Prefix { v4: 32, v6 },
        [v4, v6] if v4 <= 32 => Prefix { v4, v6 },
        _ => return Err(refuse()),
    };
    Ok((field, prefix))
}

fn words_of(address: Addr) -> [u64; 2] {
    let bytes = u128::from_be_bytes(address.0);
    [(bytes >> 64) as u64, bytes as u64]
}

fn addr_of(high: u64, low: u64) -> Addr {
    Addr((u128::from(high) << 64 | u128::from(low)).to_be_bytes())
}

/// All fields of a flow's key as seen from one of its ends.
#[inline]
pub(crate) fn whole_key(flow: &FlowKey, from: Direction) -> Key {
    let (a, a_port, b, b_port) = match from {
        Direction::LoToHi => (flow.lo, flow.lo_port, flow.hi, flow.hi_port),
        Direction::HiToLo => (flow.hi, flow.hi_port, flow.lo, flow.lo_port),
    };
    key_of((a, a_port), (b, b_port), flow.proto, flow.vlan)
}

#[inline]
pub(crate) fn key_of((a, a_port): (Addr, u16), (b, b_port): (Addr, u16), proto: u8, vlan: u16) -> Key {
    let ([a_high, a_low], [b_high, b_low]) = (words_of(a), words_of(b));
    let rest = u64::from(a_port) | u64::from(b_port) << 16 | u64::from(proto) << 32 | u64::from(vlan) << 40;
    [a_high, a_low, b_high, b_low, rest]
}

/// Hashes keys. Which key lies where in a live server's sketches is not to be known to who sends packets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hasher([u64; 6]);

impl Hasher {
    pub(crate) fn new(seed: u64) -> Hasher {
        // Odd, so that none is 0.
        Hasher(std::array::from_fn(|n| sketches::mix(seed.wrapping_add(n as u64 + 1)) | 1))
    }

    /// Three multiplications, two of them at a time, after wyhash (Wang Yi, 2019).
    #[inline]
    pub(crate) fn hash(&self, key: &Key) -> u64 {
        let s = &self.0;
        let addresses = fold(key[0] ^ s[0], key[1] ^ s[1]) ^ fold(key[2] ^ s[2], key[3] ^ s[3]).rotate_left(32);
        fold(addresses ^ s[4], key[4].wrapping_mul(s[5]) ^ s[5])
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> KeySpec {
        text.parse().unwrap()
    }

    fn example() -> Key {
        key_of((Addr::v4([10, 1, 2, 3]), 4000), (Addr([0x20; 16]), 443), 6, 77)
    }

    #[test]
    fn a_key_has_its_fields_and_nothing_else() {
        let all = spec("src_ip,dst_ip,src_port,dst_port,proto,vlan");
        let fields = all.fields(&all.cut(&example()));
        assert_eq!((fields.src_ip, fields.dst_ip), (Some(Addr::v4([10, 1, 2, 3])), Some(Addr([0x20; 16]))));
        assert_eq!(
            (fields.src_port, fields.dst_port, fields.proto, fields.vlan),
            (Some(4000), Some(443), Some(6), Some(77))
        );
        assert_eq!(all.key(&fields).unwrap(), example());
        let port = spec("responder_port");
        let fields = port.fields(&port.cut(&example()));
        assert_eq!(fields, KeyFields { responder_port: Some(443), ..KeyFields::default() });
        assert_eq!(spec("").cut(&example()), [0; WORDS]);
    }

    #[test]
    fn prefixes_are_of_each_family() {
        let cut = |text: &str| {
            let spec = spec(text);
            let fields = spec.fields(&spec.cut(&example()));
            (fields.src_ip.map(|a| a.to_string()), fields.dst_ip.map(|a| a.to_string()))
        };
        let both = |a: &str, b: &str| (Some(a.to_owned()), Some(b.to_owned()));
        let whole = "2020:2020:2020:2020:2020:2020:2020:2020";
        assert_eq!(cut("src_ip/24,dst_ip/24"), both("10.1.2.0", whole));
        assert_eq!(cut("src_ip/0,dst_ip/48"), both("0.0.0.0", "2020:2020:2020::"));
        assert_eq!(cut("src_ip/9/0,dst_ip/9/0"), both("10.0.0.0", "::"));
        assert_eq!(cut("dst_ip/32,src_ip/128"), both("10.1.2.3", whole));
    }

    #[test]
    fn values_have_the_names_and_the_order_of_the_fields() {
        let names = KeyFields::default().values().map(|(name, _)| name);
        assert_eq!(names, Field::ALL.map(Field::name));
    }

    #[test]
    fn names_come_back() {
        for text in ["src_ip", "src_ip/24,dst_port", "originator/24/48", "dst_ip/64,proto", "src_ip/32/16", ""] {
            assert_eq!(spec(text).to_string(), text);
        }
        assert_eq!(spec(" src_ip , proto ").to_string(), "src_ip,proto");
    }

    #[test]
    fn what_is_no_key_is_told() {
        let error = |text: &str| text.parse::<KeySpec>().unwrap_err().to_string();
        assert!(error("src").contains("'src'") && error("src").contains("src_ip"), "{}", error("src"));
        assert!(error("src_ip,responder").contains("src_ip and responder"));
        assert!(error("src_ip,src_ip").contains("twice"));
        for text in ["src_ip/129", "src_ip/40/40", "src_port/8", "src_ip/24/48/1", "src_ip/", "src_ip/-1"] {
            assert!(error(text).contains("prefix"), "{text}: {}", error(text));
        }
        let values = KeyFields { src_ip: Some(Addr::v4([1, 2, 3, 4])), ..KeyFields::default() };
        assert!(spec("src_ip,proto").key(&values).unwrap_err().to_string().contains("proto"));
        assert!(spec("proto").key(&values).unwrap_err().to_string().contains("src_ip"));
    }

    #[test]
    fn parts_are_known() {
        let part = |a: &str, b: &str| spec(a).is_part_of(&spec(b));
        assert!(part("src_ip", "src_ip,dst_ip") && part("src_ip/24", "src_ip") && part("", "proto"));
        assert!(!part("src_ip", "src_ip/24") && !part("dst_port", "src_ip") && !part("src_ip/24", "src_ip/16"));
    }

    #[test]
    fn hashes_are_spread_over_high_and_low_bits() {
        let hasher = Hasher::new(7);
        let mut counts = [[0_u32; 64]; 2];
        for n in 0..64_000_u32 {
            let key = key_of((Addr::v4(n.to_be_bytes()), 1), (Addr::v4([1, 1, 1, 1]), 80), 6, 0);
            let hash = hasher.hash(&key);
            counts[0][(hash >> 58) as usize] += 1;
            counts[1][(hash & 63) as usize] += 1;
        }
        // 1,000 each, give or take six standard deviations.
        assert!(counts.iter().flatten().all(|count| (810..1190).contains(count)), "{counts:?}");
    }
}
