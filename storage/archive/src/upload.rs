//! One file into one object, the same at both ends.

use crate::pace::Pacer;
use crate::{ArchiveConfig, ArchiveError, Place};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use md5::Md5;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutResult, UploadPart};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::time::Instant;

/// What was sent.
pub(crate) struct Sent {
    /// SHA-256 of all bytes, hexadecimal.
    pub(crate) sha256: String,
    /// It was read back to be compared, its tag being no checksum of ours.
    pub(crate) read_back: bool,
}

/// The checksums of what goes out.
struct Sums {
    sha256: Sha256,
    /// MD5 of each part: of these S3 makes an object's tag, unless it encrypts with keys of its own.
    parts: Vec<[u8; 16]>,
}

impl Sums {
    fn add(&mut self, part: &[u8]) {
        self.sha256.update(part);
        self.parts.push(md5::Digest::finalize(<Md5 as md5::Digest>::new_with_prefix(part)).into());
    }

    /// The tag S3 gives an object sent so.
    fn tag(&self, in_parts: bool) -> String {
        match (in_parts, self.parts.as_slice()) {
            (false, [one]) => hex(one),
            (_, parts) => {
                let all: [u8; 16] = md5::Digest::finalize(<Md5 as md5::Digest>::new_with_prefix(parts.concat())).into();
                format!("{}-{}", hex(&all), parts.len())
            }
        }
    }
}

/// Sends `bytes` bytes of an open file and makes sure that they arrived as they are. In several parts if it is larger than
/// two of them, of which as many as allowed are on their way at a time.
pub(crate) async fn upload(
    place: &Place,
    object: &Path,
    mut file: &File,
    bytes: u64,
    config: &ArchiveConfig,
    pacer: &mut Pacer,
) -> Result<Sent, ArchiveError> {
    let unreadable = |source| ArchiveError::Unreadable { path: object.as_ref().into(), source };
    let mut sums = Sums { sha256: Sha256::new(), parts: Vec::new() };
    let in_parts = bytes > 2 * config.part_bytes;
    let put = if in_parts {
        let failed = |error| place.failed("send", object, &error);
        let mut sending = place.store.put_multipart(object).await.map_err(failed)?;
        match send_parts(sending.as_mut(), file, bytes, config, pacer, &mut sums).await {
            Ok(put) => put,
            Err(error) => {
                // What is left of it costs money until it is taken back; a lifecycle rule does that where this fails.
                let _ = sending.abort().await;
                return Err(match error {
                    PartError::File(source) => unreadable(source),
                    PartError::Store(error) => failed(error),
                });
            }
        }
    } else {
        let part = read_part(&mut file, bytes).map_err(unreadable)?;
        sums.add(&part);
        tokio::time::sleep(pacer.wait(Instant::now(), bytes)).await;
        place.store.put(object, part.into()).await.map_err(|e| place.failed("send", object, &e))?
    };
    let tag = sums.tag(in_parts);
    let sha256: [u8; 32] = sums.sha256.finalize().into();
    let arrived = put.e_tag.as_deref().map(|tag| tag.trim_matches('"')) == Some(tag.as_str());
    let sent = Sent { sha256: hex(&sha256), read_back: !arrived };
    if sent.read_back && digest(place, object).await? != (sent.sha256.clone(), bytes) {
        return Err(ArchiveError::Corrupt { object: object.to_string() });
    }
    Ok(sent)
}

enum PartError {
    File(std::io::Error),
    Store(object_store::Error),
}

async fn send_parts(
    sending: &mut dyn MultipartUpload,
    mut file: &File,
    bytes: u64,
    config: &ArchiveConfig,
    pacer: &mut Pacer,
    sums: &mut Sums,
) -> Result<PutResult, PartError> {
    let mut on_their_way: FuturesUnordered<UploadPart> = FuturesUnordered::new();
    let mut left = bytes;
    while left > 0 {
        if on_their_way.len() >= config.parts_max
            && let Some(done) = on_their_way.next().await
        {
            done.map_err(PartError::Store)?;
        }
        let part = read_part(&mut file, left.min(config.part_bytes)).map_err(PartError::File)?;
        left -= part.len() as u64;
        sums.add(&part);
        tokio::time::sleep(pacer.wait(Instant::now(), part.len() as u64)).await;
        on_their_way.push(sending.put_part(part.into()));
    }
    while let Some(done) = on_their_way.next().await {
        done.map_err(PartError::Store)?;
    }
    sending.complete().await.map_err(PartError::Store)
}

fn read_part(file: &mut &File, bytes: u64) -> std::io::Result<Bytes> {
    let mut part = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
    file.read_exact(&mut part)?;
    Ok(part.into())
}

/// SHA-256 and length of an object as it lies there.
async fn digest(place: &Place, object: &Path) -> Result<(String, u64), ArchiveError> {
    let failed = |error| place.failed("read back", object, &error);
    let mut content = place.store.get(object).await.map_err(failed)?.into_stream();
    let (mut sha256, mut bytes) = (Sha256::new(), 0);
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(failed)?;
        sha256.update(&piece);
        bytes += piece.len() as u64;
    }
    let sha256: [u8; 32] = sha256.finalize().into();
    Ok((hex(&sha256), bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
