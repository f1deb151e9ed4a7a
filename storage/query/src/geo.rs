//! Where an address is, and whose: `country(address)`, `asn(address)`, `as_org(address)`, looked up in MaxMind DB files.

use crate::QueryError;
use crate::address::{self, Kind};
use crate::error::BadUse;
use arrow::array::{Array, ArrayRef, AsArray, StringBuilder, UInt32Builder};
use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use maxminddb::{PathElement, Reader};
use std::collections::HashMap;
use std::fs;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;
use wire::Addr;

/// The MaxMind DB files that functions look addresses up in. One that is replaced is read again by the next query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GeoFiles {
    /// Of `country`: GeoLite2-Country, GeoLite2-City or one of their make.
    pub country: Option<PathBuf>,
    /// Of `asn` and `as_org`: GeoLite2-ASN or one of its make.
    pub asn: Option<PathBuf>,
}

/// The files, loaded.
#[derive(Debug, Default)]
pub(crate) struct GeoDatabases {
    country: Option<Database>,
    asn: Option<Database>,
}

impl GeoDatabases {
    pub(crate) fn open(files: &GeoFiles) -> std::result::Result<GeoDatabases, QueryError> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(Database::open).transpose();
        Ok(GeoDatabases { country: open(&files.country)?, asn: open(&files.asn)? })
    }

    /// Reads files again that were replaced. Blocks.
    pub(crate) fn refresh(&self) {
        [&self.country, &self.asn].into_iter().flatten().for_each(Database::refresh);
    }
}

/// A file and what was in it when it was read last.
struct Database {
    path: PathBuf,
    loaded: RwLock<Loaded>,
}

#[derive(Clone)]
struct Loaded {
    version: Version,
    reader: Arc<Reader<Vec<u8>>>,
}

/// What changes with a file: its time and its size.
type Version = (Option<SystemTime>, u64);

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Database {
    fn open(path: &Path) -> std::result::Result<Database, QueryError> {
        let failed = |reason: String| QueryError::GeoFile { path: path.to_owned(), reason };
        let version = version(path).map_err(|e| failed(e.to_string()))?;
        let reader = Reader::open_readfile(path).map_err(|e| failed(e.to_string()))?;
        Ok(Database { path: path.to_owned(), loaded: RwLock::new(Loaded { version, reader: Arc::new(reader) }) })
    }

    fn loaded(&self) -> Loaded {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refresh(&self) {
        let Ok(version) = version(&self.path) else { return };
        if self.loaded().version == version {
            return;
        }
        let reader = match Reader::open_readfile(&self.path) {
            Ok(reader) => Arc::new(reader),
            // It may be being copied; the one read before goes on, and this one is tried again when it changes.
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a replaced MaxMind DB file does not read");
                self.loaded().reader
            }
        };
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Loaded { version, reader };
    }
}

fn version(path: &Path) -> std::io::Result<Version> {
    let meta = fs::metadata(path)?;
    Ok((meta.modified().ok(), meta.len()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Name {
    /// `country(address)`: two letters as in ISO 3166-1.
    Country,
    /// `asn(address)`: number of the autonomous system.
    Asn,
    /// `as_org(address)`: who runs it.
    AsOrg,
}

impl Name {
    const ALL: [Name; 3] = [Name::Country, Name::Asn, Name::AsOrg];

    const fn as_str(self) -> &'static str {
        match self {
            Name::Country => "country",
            Name::Asn => "asn",
            Name::AsOrg => "as_org",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Name::Country => "query.geoip.country",
            Name::Asn | Name::AsOrg => "query.geoip.asn",
        }
    }
}

/// One of the functions, over an engine's files.
#[derive(Debug)]
struct GeoFunction {
    name: Name,
    databases: Arc<GeoDatabases>,
    signature: Signature,
}

impl PartialEq for GeoFunction {
    fn eq(&self, other: &GeoFunction) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.databases, &other.databases)
    }
}

impl Eq for GeoFunction {}

impl Hash for GeoFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// The functions, for the planner.
pub(crate) fn functions(databases: &Arc<GeoDatabases>) -> [Arc<ScalarUDF>; 3] {
    Name::ALL.map(|name| {
        let args = [Kind::Ip.data_type(), DataType::Utf8].map(|t| TypeSignature::Exact(vec![t])).to_vec();
        // Not immutable: a file may be replaced between two queries, but not for the rows of one.
        let signature = Signature::one_of(args, Volatility::Stable);
        Arc::new(ScalarUDF::new_from_impl(GeoFunction { name, databases: databases.clone(), signature }))
    })
}

impl GeoFunction {
    fn database(&self) -> Result<&Database> {
        let database = match self.name {
            Name::Country => &self.databases.country,
            Name::Asn | Name::AsOrg => &self.databases.asn,
        };
        database.as_ref().ok_or_else(|| {
            let (name, key) = (self.name.as_str(), self.name.key());
            let message = format!("`{name}` needs a MaxMind DB file, and none is configured");
            let hint = Some(format!("name one in the server's configuration as `{key}`"));
            DataFusionError::External(Box::new(BadUse { message, word: name.to_owned(), hint }))
        })
    }
}

impl ScalarUDFImpl for GeoFunction {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        // Here, so that a query is refused before it reads anything.
        self.database()?;
        Ok(match self.name {
            Name::Country | Name::AsOrg => DataType::Utf8,
            Name::Asn => DataType::UInt32,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let is_scalar = matches!(args.args[0], ColumnarValue::Scalar(_));
        let addresses = args.args[0].to_array(if is_scalar { 1 } else { args.number_rows })?;
        let reader = self.database()?.loaded().reader;
        let result = match self.name {
            Name::Country => texts(&addresses, |ip| {
                // Where it is used, else where it is registered.
                let code = |of: &str| text_at(&reader, ip, &[PathElement::Key(of), PathElement::Key("iso_code")]);
                code("country").or_else(|| code("registered_country"))
            })?,
            Name::AsOrg => {
                texts(&addresses, |ip| text_at(&reader, ip, &[PathElement::Key("autonomous_system_organization")]))?
            }
            Name::Asn => {
                let mut out = UInt32Builder::with_capacity(addresses.len());
                let path = [PathElement::Key("autonomous_system_number")];
                each(&addresses, |ip| reader.lookup(ip).ok()?.decode_path(&path).ok()?, |asn| out.append_option(*asn))?;
                Arc::new(out.finish())
            }
        };
        if is_scalar {
            return ScalarValue::try_from_array(&result, 0).map(ColumnarValue::Scalar);
        }
        Ok(ColumnarValue::Array(result))
    }
}

/// What is there for the address; an address of a kind the file does not have has nothing.
fn text_at(reader: &Reader<Vec<u8>>, ip: IpAddr, path: &[PathElement<'_>]) -> Option<String> {
    reader.lookup(ip).ok()?.decode_path::<String>(path).ok()?
}

fn texts(addresses: &ArrayRef, look_up: impl Fn(IpAddr) -> Option<String>) -> Result<ArrayRef> {
    let mut out = StringBuilder::with_capacity(addresses.len(), addresses.len() * 4);
    each(addresses, look_up, |text| out.append_option(text.as_deref()))?;
    Ok(Arc::new(out.finish()))
}

/// Looks each distinct address up once, and gives what was found row by row.
fn each<T>(
    addresses: &ArrayRef,
    look_up: impl Fn(IpAddr) -> Option<T>,
    mut give: impl FnMut(&Option<T>),
) -> Result<()> {
    let mut known: HashMap<[u8; 16], Option<T>> = HashMap::new();
    let mut of = |bytes: Option<[u8; 16]>| match bytes {
        Some(bytes) => give(known.entry(bytes).or_insert_with(|| look_up(Addr(bytes).to_ip()))),
        None => give(&None),
    };
    match addresses.data_type() {
        DataType::Utf8 => {
            for text in addresses.as_string::<i32>() {
                let bytes = text.map(|text| address::parse(Kind::Ip, text)).transpose()?;
                of(bytes.and_then(|bytes| bytes.try_into().ok()));
            }
        }
        _ => addresses.as_fixed_size_binary().iter().for_each(|bytes| of(bytes.and_then(|b| b.try_into().ok()))),
    }
    Ok(())
}
