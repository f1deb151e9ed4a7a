//! How a sketch is written down: what it is, its shape and its cells, so that bytes of something else, of another version or
//! with a flipped bit are refused. All integers little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 4 | `TPSK` |
//! | 1 | kind of sketch |
//! | 1 | version of that kind's body |
//! | 2 | 0 |
//! | n | body |
//! | 4 | CRC-32 (IEEE) of all before |

use crate::SketchError;

const MAGIC: [u8; 4] = *b"TPSK";
const HEADER: usize = 8;
const CHECKSUM: usize = 4;

/// What sketch it is. The numbers stand in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    CountMin = 1,
    CountSketch = 2,
    Coco = 3,
    TopK = 4,
    Spreaders = 5,
    HyperLogLog = 6,
    Quantiles = 7,
    Bloom = 8,
    Entropy = 9,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::CountMin,
        Kind::CountSketch,
        Kind::Coco,
        Kind::TopK,
        Kind::Spreaders,
        Kind::HyperLogLog,
        Kind::Quantiles,
        Kind::Bloom,
        Kind::Entropy,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::CountMin => "Count-Min",
            Kind::CountSketch => "Count-Sketch",
            Kind::Coco => "CocoSketch",
            Kind::TopK => "top-k",
            Kind::Spreaders => "superspreader",
            Kind::HyperLogLog => "HyperLogLog",
            Kind::Quantiles => "quantile",
            Kind::Bloom => "Bloom",
            Kind::Entropy => "entropy",
        }
    }
}

/// A sketch being written down.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(kind: Kind, version: u8) -> Writer {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([kind as u8, version, 0, 0]);
        Writer(bytes)
    }

    pub(crate) fn word(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// A number that is mostly small: seven bits a byte, the lowest first.
    pub(crate) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let crc = crc32fast::hash(&self.0);
        self.0.extend(crc.to_le_bytes());
        self.0
    }
}

/// A sketch being read.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The body of a sketch of this kind and version.
    pub(crate) fn new(bytes: &'a [u8], kind: Kind, version: u8) -> Result<Reader<'a>, SketchError> {
        let Some((content, crc)) = bytes.split_last_chunk::<CHECKSUM>().filter(|(content, _)| content.len() >= HEADER)
        else {
            return Err(SketchError::damaged(format!("{} bytes are none", bytes.len())));
        };
        if content[..4] != MAGIC {
            return Err(SketchError::damaged("it does not begin with TPSK"));
        }
        if crc32fast::hash(content) != u32::from_le_bytes(*crc) {
            return Err(SketchError::damaged("its checksum does not fit"));
        }
        if content[4] != kind as u8 {
            let found = Kind::ALL.into_iter().find(|kind| *kind as u8 == content[4]);
            return Err(SketchError::Foreign {
                found: found.map_or_else(|| format!("kind {}", content[4]), |kind| kind.name().to_owned()),
                wanted: kind.name(),
            });
        }
        if content[5] != version {
            return Err(SketchError::Version { kind: kind.name(), found: content[5], known: version });
        }
        Ok(Reader(&content[HEADER..]))
    }

    pub(crate) fn word(&mut self) -> Result<u64, SketchError> {
        let (word, rest) = self.0.split_first_chunk().ok_or_else(ends)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*word))
    }

    pub(crate) fn number(&mut self) -> Result<u64, SketchError> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or_else(ends)?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(SketchError::damaged("a number of it is too long"))
    }

    /// A size that the constructor will judge.
    pub(crate) fn size(&mut self) -> Result<usize, SketchError> {
        Ok(usize::try_from(self.number()?).unwrap_or(usize::MAX))
    }

    /// Refuses keys that are not of so many words.
    pub(crate) fn key_words(&mut self, wanted: usize) -> Result<(), SketchError> {
        match self.size()? {
            words if words == wanted => Ok(()),
            words => Err(SketchError::out_of_range("words of a key", words, "as many as are asked for")),
        }
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], SketchError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(ends)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Bytes that are left: more cells than these cannot follow, which is asked before memory is taken for them.
    pub(crate) fn left(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn finish(self) -> Result<(), SketchError> {
        match self.0.len() {
            0 => Ok(()),
            more => Err(SketchError::damaged(format!("{more} bytes follow its end"))),
        }
    }
}

fn ends() -> SketchError {
    SketchError::damaged("it ends too early")
}
