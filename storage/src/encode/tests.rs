//! The writer of segments against `parquet::arrow::ArrowWriter`, given the same rows already sorted.

use super::*;
use crate::bloom::BloomHash;
use crate::columns::FLOWS;
use crate::disk::{Disk, OsDisk};
use crate::dns::DNS;
use crate::talkers::TALKERS;
use arrow::array::*;
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::*;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::basic::{Encoding, PageType};
use parquet::file::metadata::{ColumnChunkMetaData, PageIndexPolicy};
use parquet::file::properties::ReaderProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::serialized_reader::ReadOptionsBuilder;
use std::collections::HashSet;
use std::fs::File;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    /// Small, large, or one of few, as `kind` says; runs of one value where it is 4.
    fn number(&mut self, kind: u64, last: u64) -> u64 {
        match kind {
            0 => 0,
            1 => self.below(5),
            2 => self.next(),
            3 => self.below(100_000),
            _ if self.below(200) > 0 => last,
            _ => self.next(),
        }
    }
}

fn column(random: &mut Random, field: &Field, rows: usize) -> ArrayRef {
    let kind = random.below(5);
    let mut last = 0;
    let numbers: Vec<u64> = (0..rows)
        .map(|_| {
            last = random.number(kind, last);
            last
        })
        .collect();
    // None, few, many or all.
    let share = [0, 1, 60, 100][random.below(4) as usize];
    let nulls = field.is_nullable().then(|| {
        let valid = BooleanBuffer::collect_bool(rows, |_| random.below(100) >= share);
        NullBuffer::new(valid)
    });
    macro_rules! numbers {
        ($type:ty) => {
            Arc::new(PrimitiveArray::<$type>::new(numbers.iter().map(|n| *n as _).collect(), nulls))
        };
    }
    match field.data_type() {
        DataType::UInt8 => numbers!(UInt8Type),
        DataType::UInt16 => numbers!(UInt16Type),
        DataType::UInt32 => numbers!(UInt32Type),
        DataType::UInt64 => numbers!(UInt64Type),
        DataType::Int64 => numbers!(Int64Type),
        // Whole numbers, parts of such, both zeros, and what is past all numbers; never what is none.
        DataType::Float64 => {
            let value = |n: &u64| [*n as f64, *n as f64 / 7.0, -(*n as f64), 0.0, f64::INFINITY][(*n % 5) as usize];
            Arc::new(Float64Array::new(numbers.iter().map(value).collect(), nulls))
        }
        DataType::Timestamp(_, _) => {
            let times: Vec<i64> = (0..rows).map(|_| random.below(1 << 40) as i64).collect();
            Arc::new(TimestampMicrosecondArray::new(times.into(), None).with_timezone("UTC"))
        }
        DataType::Boolean => {
            Arc::new(BooleanArray::new(BooleanBuffer::collect_bool(rows, |i| numbers[i].is_multiple_of(3)), nulls))
        }
        DataType::FixedSizeBinary(length) => {
            let bytes: Vec<u8> = numbers
                .iter()
                .flat_map(|n| {
                    (u128::from(*n) << 64 | u128::from(n.rotate_left(9))).to_be_bytes()[16 - *length as usize..]
                        .to_vec()
                })
                .collect();
            Arc::new(FixedSizeBinaryArray::try_new(*length, bytes.into(), nulls).unwrap())
        }
        DataType::Dictionary(_, _) => {
            let words: Vec<String> =
                (0..1 + random.below(300)).map(|n| "wört".repeat((n % 60) as usize) + &n.to_string()).collect();
            let keys: Vec<i32> = numbers.iter().map(|n| (*n % words.len() as u64) as i32).collect();
            let keys = Int32Array::try_new(keys.into(), nulls).unwrap();
            Arc::new(DictionaryArray::try_new(keys, Arc::new(StringArray::from(words))).unwrap())
        }
        other => panic!("no column of a table is {other}"),
    }
}

fn batches(random: &mut Random, table: &TableInfo, rows: &[usize]) -> Vec<RecordBatch> {
    let schema = (table.schema)();
    let batch = |rows: &usize| {
        let columns = schema.fields().iter().map(|field| column(random, field, *rows)).collect();
        RecordBatch::try_new(schema.clone(), columns).unwrap()
    };
    rows.iter().map(batch).collect()
}

/// The same rows in one batch, sorted.
fn sorted(batches: &[RecordBatch]) -> RecordBatch {
    let all = concat_batches(&batches[0].schema(), batches).unwrap();
    let times = all.column(0).as_primitive::<TimestampMicrosecondType>();
    let mut order: Vec<u64> = (0..all.num_rows() as u64).collect();
    order.sort_by_key(|row| times.value(*row as usize));
    take_record_batch(&all, &UInt64Array::from(order)).unwrap()
}

/// Text as such: dictionaries of the same texts may differ.
fn as_text(array: &dyn Array) -> ArrayRef {
    match array.data_type() {
        DataType::Dictionary(_, _) => arrow::compute::cast(array, &DataType::Utf8).unwrap(),
        _ => make_array(array.to_data()),
    }
}

/// Returns, by column, how many data pages there are of each encoding.
fn check(table: &TableInfo, batches: &[RecordBatch], profile: SegmentProfile) -> Vec<Vec<(Encoding, i32)>> {
    let dir = tempfile::tempdir().unwrap();
    let [ours, theirs] = ["ours", "theirs"].map(|name| dir.path().join(name));
    let new = NewSegment {
        id: SegmentId { number: 7, part: 0 },
        dir: "",
        origin: Origin::Log { parts: 1 },
        batches,
        rows: &order_by_time(batches),
        profile,
    };
    let file = OsDisk.open(&ours, Open::Create).unwrap();
    let WrittenRows { blooms, footer } = write_rows(file, &ours, table, &new, None).unwrap();
    let wanted = sorted(batches);
    let properties = WriterProperties::builder()
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_write_batch_size(PAGE_ROWS)
        .set_data_page_size_limit(usize::MAX)
        .set_dictionary_page_size_limit(usize::MAX)
        .build();
    let mut writer = ArrowWriter::try_new(File::create(&theirs).unwrap(), wanted.schema(), Some(properties)).unwrap();
    writer.write(&wanted).unwrap();
    writer.close().unwrap();

    let options = || {
        ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required).with_encoding_stats_as_mask(false)
    };
    let open = |path: &Path| {
        ParquetRecordBatchReaderBuilder::try_new_with_options(File::open(path).unwrap(), options()).unwrap()
    };
    let (ours_meta, theirs_meta) = (open(&ours), open(&theirs));
    for (at, (info, field)) in table.columns.iter().zip(wanted.schema().fields()).enumerate() {
        let columns = |reader: &ParquetRecordBatchReaderBuilder<File>| {
            let (meta, types) = (reader.metadata().clone(), reader.parquet_schema());
            let converter = StatisticsConverter::try_new(info.name, reader.schema(), types).unwrap();
            let (index, offsets) = (meta.column_index().unwrap(), meta.offset_index().unwrap());
            [
                converter.row_group_mins(meta.row_groups()).unwrap(),
                converter.row_group_maxes(meta.row_groups()).unwrap(),
                Arc::new(converter.row_group_null_counts(meta.row_groups()).unwrap()) as ArrayRef,
                converter.data_page_mins(index, offsets, [&0]).unwrap(),
                converter.data_page_maxes(index, offsets, [&0]).unwrap(),
                Arc::new(converter.data_page_null_counts(index, offsets, [&0]).unwrap()),
                Arc::new(converter.data_page_row_counts(offsets, meta.row_groups(), [&0]).unwrap().unwrap()),
            ]
            .map(|array| as_text(&array))
        };
        let (ours, theirs) = (columns(&ours_meta), columns(&theirs_meta));
        if info.statistics {
            assert_eq!(ours, theirs, "{}", info.name);
        }
        assert_eq!(ours_meta.metadata().row_group(0).column(at).num_values() as usize, wanted.num_rows(), "{field}");
    }
    let read: Vec<_> = open(&ours).build().unwrap().map(Result::unwrap).collect();
    let read = concat_batches(&wanted.schema(), &read).unwrap();
    assert_eq!(read.num_rows(), wanted.num_rows());
    for (at, info) in table.columns.iter().enumerate() {
        assert_eq!(&as_text(read.column(at)), &as_text(wanted.column(at)), "{}", info.name);
    }
    check_blooms(&ours, table, &wanted, &blooms);
    check_footer(&ours, &ours_meta, footer.unwrap());
    let pages = |column: &ColumnChunkMetaData| {
        let pages =
            column.page_encoding_stats().unwrap().iter().filter(|page| page.page_type != PageType::DICTIONARY_PAGE);
        pages.map(|page| (page.encoding, page.count)).collect()
    };
    ours_meta.metadata().row_group(0).columns().iter().map(pages).collect()
}

/// All that stands behind pages and filters is watched over.
fn check_footer(path: &Path, reader: &ParquetRecordBatchReaderBuilder<File>, footer: Footer) {
    let bytes = std::fs::read(path).unwrap();
    let Range { start, end } = footer.range(bytes.len() as u64);
    assert_eq!(end, bytes.len() as u64);
    let columns = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
    let (mut before, mut behind) = (0, u64::MAX);
    for column in columns {
        let pages = column.byte_range();
        let bloom = column.bloom_filter_offset().zip(column.bloom_filter_length());
        before = before.max(pages.0 + pages.1);
        before = before.max(bloom.map_or(0, |(offset, length)| offset as u64 + length as u64));
        behind = behind.min(column.offset_index_offset().unwrap() as u64);
        behind = behind.min(column.column_index_offset().map_or(u64::MAX, |offset| offset as u64));
    }
    assert_eq!((before, behind), (start, start));
    let mut end = bytes[start as usize..].to_vec();
    assert!(footer.is(&end));
    end[20] ^= 4;
    assert!(!footer.is(&end) && !footer.is(&bytes[start as usize + 1..]) && !footer.is(&[]));
}

/// Every value there is, is in its filter; of others, few. One block says the same, where the manifest has it.
fn check_blooms(path: &Path, table: &TableInfo, rows: &RecordBatch, blooms: &Blooms) {
    let bytes = std::fs::read(path).unwrap();
    let read = ReaderProperties::builder().set_read_bloom_filter(true).build();
    let options = ReadOptionsBuilder::new().with_reader_properties(read).build();
    let reader = SerializedFileReader::new_with_options(File::open(path).unwrap(), options).unwrap();
    let group = reader.get_row_group(0).unwrap();
    for (at, info) in table.columns.iter().enumerate().filter(|(_, info)| info.bloom) {
        let column = as_text(rows.column(at));
        let value = |row: usize| match column.data_type() {
            DataType::Utf8 => column.as_string::<i32>().value(row).as_bytes().to_vec(),
            DataType::UInt16 => u32::from(column.as_primitive::<UInt16Type>().value(row)).to_le_bytes().to_vec(),
            _ => column.as_fixed_size_binary().value(row).to_vec(),
        };
        let present: HashSet<Vec<u8>> = (0..column.len()).filter(|row| column.is_valid(*row)).map(value).collect();
        let Some(bloom) = group.get_column_bloom_filter(at) else {
            assert!(*column.data_type() == DataType::UInt16 && present.len() > 1 << 15, "{}", info.name);
            assert_eq!(blooms.get(info.name, 0), None, "{}", info.name);
            continue;
        };
        let listed = blooms.get(info.name, 0).unwrap();
        let ask = |value: &[u8]| {
            let hash = BloomHash::of(value);
            let block = listed.block(hash);
            hash.may_be_in(bytes[block.start as usize..block.end as usize].try_into().unwrap())
        };
        for value in &present {
            assert!(bloom.check(&value[..]) && ask(value), "{}: {value:?}", info.name);
        }
        let absent = (0..10_000).map(|n| format!("absent {n}").into_bytes());
        let taken: Vec<_> = absent.filter(|value| bloom.check(&value[..])).collect();
        assert!(taken.len() < 40, "{}: {} of 10,000 taken for present", info.name, taken.len());
        assert!(taken.iter().all(|value| ask(value)), "{}", info.name);
    }
}

#[test]
fn segments_are_what_the_plain_writer_makes() {
    for seed in 1..=2u64 {
        println!("seed {seed}");
        let mut random = Random(seed);
        for (table, profile) in
            [(&FLOWS, SegmentProfile::Tuned), (&DNS, SegmentProfile::Tuned), (&FLOWS, SegmentProfile::Compatible)]
        {
            check(table, &batches(&mut random, table, &[1, 700, 9_000, 12_000]), profile);
            check(table, &batches(&mut random, table, &[1]), profile);
        }
    }
}

/// Addresses without a value and floating-point numbers are this table's alone.
#[test]
fn talkers_are_what_the_plain_writer_makes() {
    for seed in 1..=4u64 {
        println!("seed {seed}");
        let mut random = Random(seed << 8);
        for profile in [SegmentProfile::Tuned, SegmentProfile::Compatible] {
            let pages = check(&TALKERS, &batches(&mut random, &TALKERS, &[1, 700, 9_000, 12_000]), profile);
            let at = TALKERS.columns.iter().position(|column| column.name == "estimate").unwrap();
            let encoding = match profile {
                SegmentProfile::Tuned => Encoding::BYTE_STREAM_SPLIT,
                SegmentProfile::Compatible => Encoding::PLAIN,
            };
            assert_eq!(pages[at], [(encoding, 2)]);
            check(&TALKERS, &batches(&mut random, &TALKERS, &[1]), profile);
        }
    }
}

/// Whoever skips pages by their bounds must not miss a row whose estimate is no number.
#[test]
fn a_column_with_what_is_no_number_has_no_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let mut batches = batches(&mut Random(5), &TALKERS, &[30_000]);
    let at = |name: &str| TALKERS.columns.iter().position(|column| column.name == name).unwrap();
    let mut columns = batches[0].columns().to_vec();
    columns[at("estimate")] =
        Arc::new(Float64Array::from_iter_values((0..30_000).map(|n| if n == 7 { f64::NAN } else { 1.0 })));
    batches[0] = RecordBatch::try_new(batches[0].schema(), columns).unwrap();
    let rows = order_by_time(&batches);
    let new = NewSegment {
        id: SegmentId { number: 7, part: 0 },
        dir: "",
        origin: Origin::Log { parts: 1 },
        batches: &batches,
        rows: &rows,
        profile: SegmentProfile::Tuned,
    };
    write_rows(OsDisk.open(&path, Open::Create).unwrap(), &path, &TALKERS, &new, None).unwrap();
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
    let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(File::open(&path).unwrap(), options).unwrap();
    let group = reader.metadata().row_group(0);
    for (name, bounded) in [("estimate", false), ("lower", true)] {
        let column = group.column(at(name));
        assert_eq!(
            (column.statistics().is_some(), column.column_index_offset().is_some()),
            (bounded, bounded),
            "{name}"
        );
    }
    let read = reader.build().unwrap().map(|batch| batch.unwrap()["estimate"].as_primitive::<Float64Type>().clone());
    assert_eq!(read.flat_map(|column| column.values().to_vec()).filter(|value| value.is_nan()).count(), 1);
}

/// Later pages have their texts as they are.
#[test]
fn a_dictionary_that_is_full_takes_no_more() {
    let mut random = Random(9);
    let mut batches = batches(&mut random, &DNS, &[45_000, 45_000]);
    let at = DNS.columns.iter().position(|column| column.name == "qname").unwrap();
    for (number, batch) in batches.iter_mut().enumerate() {
        let texts: Vec<String> = (0..45_000).map(|n| format!("{number}-{n:->400}")).collect();
        let keys = Int32Array::from_iter((0..45_000).map(|n| (n % 5 > 0).then_some(n)));
        let mut columns = batch.columns().to_vec();
        columns[at] = Arc::new(DictionaryArray::try_new(keys, Arc::new(StringArray::from(texts))).unwrap());
        *batch = RecordBatch::try_new(batch.schema(), columns).unwrap();
    }
    let pages = check(&DNS, &batches, SegmentProfile::Tuned);
    assert_eq!(pages[at], [(Encoding::RLE_DICTIONARY, 3), (Encoding::PLAIN, 2)]);
}
