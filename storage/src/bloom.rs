//! Bloom filters of segments, asked without opening these: the manifest knows where each filter's bits lie, and the
//! block of 32 bytes a value belongs to says whether it may be there. The filters are Parquet's own (split-block, XXH64
//! of the PLAIN value); reading one whole to ask for one value takes hundreds of kilobytes.

use crate::table::column_name;
use parquet::file::metadata::RowGroupMetaData;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use twox_hash::XxHash64;

/// Bytes of a block, the part of a filter one value touches.
pub const BLOOM_BLOCK_BYTES: usize = 32;

/// What each word of a block multiplies a hash by (Parquet's BloomFilter.md).
const SALT: [u32; 8] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

/// A value as bloom filters know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BloomHash(u64);

impl BloomHash {
    /// Of a value as PLAIN has it, texts without their length: numbers of up to 32 bits as four bytes, little-endian.
    pub fn of(plain: &[u8]) -> BloomHash {
        BloomHash(XxHash64::oneshot(0, plain))
    }

    /// Whether the value may be among those of `block`, its [`Bloom::block`]. If not, it is not in the column.
    pub fn may_be_in(self, block: &[u8; BLOOM_BLOCK_BYTES]) -> bool {
        let (words, _) = block.as_chunks::<4>();
        words.iter().zip(SALT).all(|(word, salt)| {
            let bit = (self.0 as u32).wrapping_mul(salt) >> 27;
            u32::from_le_bytes(*word) & 1 << bit != 0
        })
    }
}

/// Where the bits of one filter lie in a segment's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bloom {
    offset: u64,
    /// 0 for no filter, else a multiple of a block.
    bytes: u32,
}

impl Bloom {
    /// The bytes of the file that tell of a value.
    pub fn block(&self, hash: BloomHash) -> Range<u64> {
        let blocks = u64::from(self.bytes) / BLOOM_BLOCK_BYTES as u64;
        let block = ((hash.0 >> 32) * blocks) >> 32;
        let start = self.offset.saturating_add(block * BLOOM_BLOCK_BYTES as u64);
        start..start.saturating_add(BLOOM_BLOCK_BYTES as u64)
    }

    /// From where a filter starts and how long it is with its header, of less than 32 bytes.
    fn after_header(offset: Option<i64>, length: Option<i32>) -> Bloom {
        let whole = offset.and_then(|at| u64::try_from(at).ok()).zip(length.and_then(|n| u32::try_from(n).ok()));
        match whole {
            // The bits are a power of two, of at least a block.
            Some((offset, length)) if length as usize > BLOOM_BLOCK_BYTES => {
                let bytes = 1 << length.ilog2();
                Bloom { offset: offset + u64::from(length - bytes), bytes }
            }
            _ => Bloom { offset: 0, bytes: 0 },
        }
    }
}

/// All filters of a segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blooms(Arc<[ColumnBlooms]>);

/// Those of a column, one for each row group.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ColumnBlooms {
    column: &'static str,
    row_groups: Box<[Bloom]>,
}

impl Blooms {
    /// Those of a file.
    pub(crate) fn of(row_groups: &[RowGroupMetaData]) -> Blooms {
        let columns = row_groups.first().map_or(0, RowGroupMetaData::num_columns);
        let column = |at: usize| {
            let name = column_name(row_groups.first()?.column(at).column_path().string().as_str())?;
            let bloom = |group: &RowGroupMetaData| match group.columns().get(at) {
                Some(chunk) => Bloom::after_header(chunk.bloom_filter_offset(), chunk.bloom_filter_length()),
                None => Bloom::after_header(None, None),
            };
            let row_groups: Box<[Bloom]> = row_groups.iter().map(bloom).collect();
            row_groups.iter().any(|bloom| bloom.bytes > 0).then_some(ColumnBlooms { column: name, row_groups })
        };
        Blooms((0..columns).filter_map(column).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Row groups they tell of; 0 if there are none.
    pub(crate) fn row_groups(&self) -> usize {
        self.0.first().map_or(0, |column| column.row_groups.len())
    }

    pub(crate) fn get(&self, column: &str, row_group: usize) -> Option<Bloom> {
        let blooms = self.0.iter().find(|blooms| blooms.column == column)?;
        blooms.row_groups.get(row_group).copied().filter(|bloom| bloom.bytes > 0)
    }
}

/// `{"src_ip":[[offset,bytes],...],...}`, `[0,0]` where a row group has no filter.
impl Serialize for Blooms {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for ColumnBlooms { column, row_groups } in self.0.iter() {
            let pairs: Vec<(u64, u32)> = row_groups.iter().map(|bloom| (bloom.offset, bloom.bytes)).collect();
            map.serialize_entry(column, &pairs)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Blooms {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Blooms, D::Error> {
        struct Columns;

        impl<'de> Visitor<'de> for Columns {
            type Value = Blooms;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bloom filters by column")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Blooms, A::Error> {
                let mut columns = Vec::new();
                while let Some((name, pairs)) = map.next_entry::<String, Vec<(u64, u32)>>()? {
                    // Of a newer version's column nobody asks.
                    let Some(column) = column_name(&name) else { continue };
                    // What is no whole number of blocks is not asked either.
                    let whole = |bytes: u32| if (bytes as usize).is_multiple_of(BLOOM_BLOCK_BYTES) { bytes } else { 0 };
                    let blooms = pairs.into_iter().map(|(offset, bytes)| Bloom { offset, bytes: whole(bytes) });
                    columns.push(ColumnBlooms { column, row_groups: blooms.collect() });
                }
                Ok(Blooms(columns.into()))
            }
        }

        deserializer.deserialize_map(Columns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::bloom_filter::Sbbf;

    #[test]
    fn a_block_says_what_the_whole_filter_says() {
        for values in [1u64, 100, 5_000] {
            let mut filter = Sbbf::new_with_ndv_fpp(values, 0.01).unwrap();
            (0..values).for_each(|n| filter.insert(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[..]));
            let mut file = b"what is before".to_vec();
            let offset = file.len() as i64;
            filter.write(&mut file).unwrap();
            let bloom = Bloom::after_header(Some(offset), Some((file.len() as i64 - offset) as i32));
            assert_eq!(bloom.bytes as usize, filter.num_blocks() * BLOOM_BLOCK_BYTES);
            for n in 0..3 * values {
                let value = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
                let hash = BloomHash::of(&value);
                let Range { start, end } = bloom.block(hash);
                let block = file[start as usize..end as usize].try_into().unwrap();
                assert_eq!(hash.may_be_in(block), filter.check(&value[..]), "{n} of {values}");
                assert!(n >= values || hash.may_be_in(block));
            }
        }
    }

    #[test]
    fn lines_of_other_versions_are_read() {
        let read = |json: &str| serde_json::from_str::<Blooms>(json);
        let blooms = read(r#"{"src_ip":[[70,64],[0,0]],"a_new_one":[[1,32]],"dst_ip":[[9,33]]}"#).unwrap();
        assert_eq!(blooms.row_groups(), 2);
        assert_eq!(blooms.get("src_ip", 0), Some(Bloom { offset: 70, bytes: 64 }));
        assert_eq!(blooms.get("src_ip", 1), None);
        assert_eq!(blooms.get("a_new_one", 0), None);
        assert_eq!(blooms.get("dst_ip", 0), None, "no whole blocks");
        assert_eq!(read(&serde_json::to_string(&blooms).unwrap()).unwrap().get("src_ip", 0), blooms.get("src_ip", 0));
        assert!(read(r#"{"src_ip":7}"#).is_err());
    }
}
