//! shim
use crate::*;
/// shim
#[allow(missing_docs)]
pub struct DnsStore(u64);
#[allow(missing_docs)]
impl DnsStore {
    pub fn shim() -> DnsStore {
        DnsStore(0)
    }
    pub fn append(&mut self, rows: &[hints::DnsRecord], _: &[u8]) -> Result<(), StorageError> {
        self.0 += rows.len() as u64;
        Ok(())
    }
    pub fn tick(&mut self, _: Now) -> Result<(), StorageError> {
        Ok(())
    }
    pub fn set_retention(&mut self, _: Retention) {}
    pub fn flush(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
    pub fn close(self) -> Result<(), StorageError> {
        Ok(())
    }
    pub fn rows_logged_and_lost(&self) -> (u64, u64) {
        (self.0, 0)
    }
}
