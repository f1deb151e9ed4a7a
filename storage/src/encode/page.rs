//! A page as it stands in a file: a header, Thrift's compact protocol (apache/parquet-format, `PageHeader`), and what it
//! describes. Parquet's own writer leaves the checksum out, without which a flipped bit is a wrong number.

use parquet::basic::{Encoding, PageType};
use parquet::errors::Result;

/// What a header says of its page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    pub(super) kind: PageKind,
    /// Values of the page, nulls among them.
    pub(super) values: usize,
    pub(super) encoding: Encoding,
    /// Bytes of the page before any of it was compressed.
    pub(super) uncompressed: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum PageKind {
    Dictionary,
    /// Version 1, compressed as a whole.
    DataV1,
    /// Version 2.
    DataV2 {
        nulls: usize,
        /// Bytes of levels, which come first and are never compressed.
        levels: usize,
        is_compressed: bool,
    },
}

/// Where a page stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct PagePlace {
    pub(super) kind: PageType,
    /// Of its header.
    pub(super) offset: usize,
    /// Bytes, header included.
    pub(super) length: usize,
    /// The same before compression.
    pub(super) uncompressed: usize,
}

/// Appends a page whose bytes are those of `parts`.
///
/// # Errors
/// It is longer than a header can say, 2 GiB.
pub(super) fn append(file: &mut Vec<u8>, page: &PageHeader, parts: [&[u8]; 2]) -> Result<PagePlace> {
    let mut crc = crc32fast::Hasher::new();
    parts.iter().for_each(|part| crc.update(part));
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    let offset = file.len();
    let kind = match page.kind {
        PageKind::Dictionary => PageType::DICTIONARY_PAGE,
        PageKind::DataV1 => PageType::DATA_PAGE,
        PageKind::DataV2 { .. } => PageType::DATA_PAGE_V2,
    };
    let mut header = Struct { out: file, last: 0 };
    header.int(1, kind as i32);
    header.int(2, i32::try_from(page.uncompressed)?);
    header.int(3, i32::try_from(bytes)?);
    // Signed because Thrift has no other numbers.
    header.int(4, crc.finalize() as i32);
    let values = i32::try_from(page.values)?;
    match page.kind {
        PageKind::DataV1 => {
            let mut data = header.begin(5);
            data.int(1, values);
            data.int(2, page.encoding as i32);
            // Of definition levels, and of repetition levels.
            data.int(3, Encoding::RLE as i32);
            data.int(4, Encoding::RLE as i32);
            data.end();
        }
        PageKind::Dictionary => {
            let mut dictionary = header.begin(7);
            dictionary.int(1, values);
            dictionary.int(2, page.encoding as i32);
            dictionary.flag(3, false);
            dictionary.end();
        }
        PageKind::DataV2 { nulls, levels, is_compressed } => {
            let mut data = header.begin(8);
            data.int(1, values);
            data.int(2, i32::try_from(nulls)?);
            // Rows, of which each has one value.
            data.int(3, values);
            data.int(4, page.encoding as i32);
            data.int(5, i32::try_from(levels)?);
            data.int(6, 0);
            data.flag(7, is_compressed);
            data.end();
        }
    }
    header.end();
    let header = file.len() - offset;
    parts.iter().for_each(|part| file.extend_from_slice(part));
    Ok(PagePlace { kind, offset, length: header + bytes, uncompressed: header + page.uncompressed })
}

/// A Thrift struct under construction. Its fields are numbered upwards, in steps of at most 15.
struct Struct<'a> {
    out: &'a mut Vec<u8>,
    /// Number of its last field.
    last: u8,
}

impl Struct<'_> {
    fn field(&mut self, number: u8, of_type: u8) {
        self.out.push((number - self.last) << 4 | of_type);
        self.last = number;
    }

    fn int(&mut self, number: u8, value: i32) {
        self.field(number, 5);
        // Zigzag, in groups of seven bits from the lowest.
        let mut rest = (value << 1 ^ value >> 31) as u32;
        while rest >= 0x80 {
            self.out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.out.push(rest as u8);
    }

    fn flag(&mut self, number: u8, value: bool) {
        self.field(number, if value { 1 } else { 2 });
    }

    fn begin(&mut self, number: u8) -> Struct<'_> {
        self.field(number, 12);
        Struct { out: self.out, last: 0 }
    }

    fn end(self) {
        self.out.push(0);
    }
}
