//! What other programs rely on, checked from the files' own metadata.

mod common;

use common::{flow, options, read_parquet};
use flowtable::FlowRecord;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use std::fs::File;
use storage::{SegmentProfile, Store, StoreOptions, flow_schema};
use wire::{Addr, Nanos};

const ROWS: u64 = 50_000;

fn segment(profile: SegmentProfile) -> (ParquetMetaData, Vec<arrow::record_batch::RecordBatch>) {
    let dir = tempfile::tempdir().unwrap();
    let large = StoreOptions { batch_rows: 8_192, segment_rows_max: 1 << 20, profile, ..options(dir.path()) };
    let mut store = Store::open(large).unwrap();
    let rows: Vec<FlowRecord> = (0..ROWS)
        .map(|n| FlowRecord {
            start: Nanos::from_millis(n),
            end: Nanos::from_millis(n + n % 7),
            dst_ip: Addr::v4([192, 168, (n % 3) as u8, (n % 251) as u8]),
            bytes_o: 40 + n * n % 100_003,
            ..flow(n)
        })
        .collect();
    store.append(&rows, &[]).unwrap();
    store.flush().unwrap();
    let path = &store.reader().snapshot().unwrap().segments[0].path;
    let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required);
    reader.try_parse(&File::open(path).unwrap()).unwrap();
    (reader.finish().unwrap(), read_parquet(path))
}

fn encodings(meta: &ParquetMetaData, name: &str) -> Vec<Encoding> {
    let columns = meta.row_group(0).columns();
    let column = columns.iter().find(|column| column.column_path().string() == name).unwrap();
    column.encodings().collect()
}

#[test]
fn tuned_segments_have_what_readers_prune_by() {
    let (meta, _) = segment(SegmentProfile::Tuned);
    let file = meta.file_metadata();
    assert!(file.created_by().unwrap().starts_with("taphouse version "));
    assert_eq!(file.num_rows() as u64, ROWS);
    assert_eq!(file.schema_descr().num_columns(), flow_schema().fields().len());
    let pairs = file.key_value_metadata().unwrap();
    assert!(pairs.iter().any(|pair| pair.key == "taphouse.format" && pair.value.as_deref() == Some("2")));
    let group = meta.row_group(0);
    let sorting = group.sorting_columns().unwrap();
    assert_eq!((sorting[0].column_idx, sorting[0].descending), (0, false));
    for column in group.columns() {
        assert!(matches!(column.compression(), Compression::ZSTD(_)), "{}", column.column_path());
        assert!(column.offset_index_offset().is_some(), "{}", column.column_path());
        let unordered = ["flow_id", "src_mac", "dst_mac"].contains(&column.column_path().string().as_str());
        assert_eq!(column.statistics().is_none(), unordered, "{}", column.column_path());
        let looked_up =
            ["src_ip", "dst_ip", "src_port", "dst_port", "name"].contains(&column.column_path().string().as_str());
        assert_eq!(column.bloom_filter_offset().is_some(), looked_up, "{}", column.column_path());
    }
    let pages = meta.offset_index().unwrap()[0][0].page_locations();
    assert_eq!(pages.len(), 3, "20,000 rows a page");
    assert!(encodings(&meta, "t_end").contains(&Encoding::DELTA_BINARY_PACKED));
    assert!(encodings(&meta, "bytes_o").contains(&Encoding::BYTE_STREAM_SPLIT));
    assert!(encodings(&meta, "src_port").contains(&Encoding::BYTE_STREAM_SPLIT));
    assert!(encodings(&meta, "dst_ip").contains(&Encoding::RLE_DICTIONARY));
    // A filter sized for as many distinct values as rows takes 15 bits each and more; three networks need far fewer.
    let blooms = ["src_ip", "dst_ip"].map(|name| {
        let column = group.columns().iter().find(|column| column.column_path().string() == name).unwrap();
        column.bloom_filter_length().unwrap()
    });
    assert!((64_000..=140_000).contains(&blooms[0]), "{blooms:?}");
    assert!(blooms[1] < 4_000, "{blooms:?}");
}

#[test]
fn compatible_segments_use_only_what_every_reader_knows() {
    let (meta, rows) = segment(SegmentProfile::Compatible);
    for column in meta.row_group(0).columns() {
        for encoding in column.encodings() {
            let known = [Encoding::PLAIN, Encoding::RLE, Encoding::RLE_DICTIONARY, Encoding::PLAIN_DICTIONARY];
            assert!(known.contains(&encoding), "{}: {encoding}", column.column_path());
        }
    }
    assert_eq!(meta.file_metadata().version(), 1);
    let (_, tuned) = segment(SegmentProfile::Tuned);
    assert_eq!(rows, tuned, "the same rows");
}
