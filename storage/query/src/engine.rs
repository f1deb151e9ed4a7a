use crate::address::{AddressRule, TextAsAddress};
use crate::error::{Complaint, Names, message_of, plain};
use crate::functions::{self, Name};
use crate::geo::{self, GeoDatabases};
use crate::keys::AddressKeys;
use crate::live::{self, LiveProvider, LiveTable};
use crate::memory::SharedMemory;
use crate::parse::{self, TextKind};
use crate::reader::ScanBudget;
use crate::stop::{self, Stop};
use crate::stream::{self, AbortOnDrop, QueryStream, Running};
use crate::table::{self, SnapshotCell, StoredTable, with_t_start};
use crate::times;
use crate::{FlowQuery, GeoFiles, Located, Parameters, QueryError, Reading};
use archive::ArchiveReader;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::{CatalogProvider, CatalogProviderList, SchemaProvider};
use datafusion::catalog::{MemoryCatalogProvider, MemoryCatalogProviderList, MemorySchemaProvider};
use datafusion::common::DataFusionError;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::object_store::ObjectStore;
use datafusion::optimizer::Analyzer;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;
use datafusion::sql::parser::Statement;
use std::sync::Arc;
use std::time::{Duration, Instant};
use storage::{Snapshot, StorageError, StoreReader, Table};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Stack of a query thread, bytes. Planner and optimizer recurse over expressions; [`parse::TEXT_WORDS_MAX`] bounds
/// how deep, and a test holds the two together. Only touched pages cost memory.
const THREAD_STACK_BYTES: usize = 64 << 20;

/// Most memory for Parquet footers kept between queries, bytes.
const FOOTER_CACHE_BYTES: usize = 64 << 20;

/// Rows a batch.
const BATCH_ROWS: usize = 8192;

/// Functions that make gigabytes out of one small argument, past every budget: not offered.
const UNBOUNDED: [&str; 3] = ["repeat", "lpad", "rpad"];

/// The catalog that the tables are in, as in `taphouse.public.flows`.
pub const CATALOG: &str = "taphouse";

/// The schema that the tables are in.
pub const SCHEMA: &str = "public";

/// What gives queries their rows: each snapshot is consistent and stays readable as long as it lives.
pub trait FlowSource: Send + Sync + 'static {
    /// All segments of a table, and the rows in none of them yet. May block; called on a query thread, once for each table.
    ///
    /// # Errors
    /// When the data folder cannot be read.
    fn snapshot_of(&self, table: Table) -> Result<Snapshot, StorageError>;

    /// What the files of segments lie in, where that is not this machine's file system: their `path` is then the name of
    /// an object, with `sensor=NAME` in it, and tables have a column `sensor`.
    fn objects(&self) -> Option<Arc<dyn ObjectStore>> {
        None
    }

    /// Tables beside the stored ones. Asked once, by the engine that is made of this source.
    fn live_tables(&self) -> Vec<Arc<dyn LiveTable>> {
        Vec::new()
    }

    /// Where a table is to be had that is not here, if anywhere; told to who asks for it.
    fn absent(&self, table: &str) -> Option<String> {
        let _ = table;
        None
    }
}

impl FlowSource for StoreReader {
    fn snapshot_of(&self, table: Table) -> Result<Snapshot, StorageError> {
        StoreReader::snapshot_of(self, table)
    }
}

/// What an archive lists at that moment. Rows the sensors have not shipped yet are not in it.
impl FlowSource for ArchiveReader {
    /// On a thread that may block, of the runtime whose queries read the objects.
    fn snapshot_of(&self, table: Table) -> Result<Snapshot, StorageError> {
        Handle::current()
            .block_on(ArchiveReader::snapshot_of(self, table))
            .map_err(|error| StorageError::Elsewhere { reason: error.to_string() })
    }

    fn objects(&self) -> Option<Arc<dyn ObjectStore>> {
        Some(self.store())
    }
}

/// What queries may cost. History must never cost a packet.
#[derive(Clone, Debug)]
pub struct QueryLimits {
    /// Memory all running queries share for grouping, sorting and joining, bytes. What a scan holds of the rows it is
    /// decoding comes on top: some MiB a thread.
    pub memory_bytes: usize,
    /// Most bytes a query may read from segments; `None` for no limit.
    pub scan_bytes_max: Option<u64>,
    /// Most time a query may compute; waiting for its reader does not count. `None` for no limit.
    pub time_max: Option<Duration>,
    /// Most rows of an answer, after which it ends in an error; `None` for no limit.
    pub rows_max: Option<u64>,
    /// Most queries at a time; one more is refused at once. At least 1.
    pub concurrent_max: usize,
    /// Threads that compute queries, all of them together. At least 1.
    pub threads: usize,
}

impl Default for QueryLimits {
    fn default() -> QueryLimits {
        QueryLimits {
            memory_bytes: 512 << 20,
            scan_bytes_max: None,
            time_max: Some(Duration::from_secs(60)),
            rows_max: None,
            concurrent_max: 16,
            threads: 2,
        }
    }
}

/// Answers SQL over one data folder. Cheap to clone; all clones share threads, memory and limits.
///
/// Queries run on threads of their own, so that a long one starves neither packets nor the caller's runtime. Dropping
/// the last clone and the last [`QueryStream`] ends the threads.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("limits", &self.shared.limits).finish_non_exhaustive()
    }
}

pub(crate) struct Shared {
    source: Arc<dyn FlowSource>,
    live: Vec<Arc<dyn LiveTable>>,
    schema: SchemaRef,
    limits: QueryLimits,
    geo: Arc<GeoDatabases>,
    slots: Arc<Semaphore>,
    /// Functions, rules and settings every query starts from; holds no table.
    template: SessionState,
    /// `None` only while being dropped.
    threads: Option<Runtime>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.take() {
            // Waiting for them would panic where the last clone is dropped inside another runtime.
            threads.shutdown_background();
        }
    }
}

impl Engine {
    /// An engine over what `source` holds, usually a [`StoreReader`].
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub fn new(source: impl FlowSource, limits: QueryLimits) -> Result<Engine, QueryError> {
        Engine::with_geo(source, limits, &GeoFiles::default())
    }

    /// As [`Engine::new`], with files for `country`, `asn` and `as_org`.
    ///
    /// # Errors
    /// When a file does not read, or its threads cannot be started.
    pub fn with_geo(source: impl FlowSource, limits: QueryLimits, files: &GeoFiles) -> Result<Engine, QueryError> {
        let geo = Arc::new(GeoDatabases::open(files)?);
        let failed = |what: &str, e: &dyn std::fmt::Display| QueryError::Execution { message: format!("{what}: {e}") };
        let threads = Builder::new_multi_thread()
            .worker_threads(limits.threads.max(1))
            // Reads of segments block; more at once than this only fight for the disk.
            .max_blocking_threads(limits.threads.max(1) * 4)
            .thread_name("query")
            .thread_stack_size(THREAD_STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|e| failed("cannot start query threads", &e))?;
        let template =
            template(&limits, &geo).map_err(|e| failed("cannot set up the query engine", &message_of(&e)))?;
        let slots = Arc::new(Semaphore::new(limits.concurrent_max.max(1)));
        if let Some(objects) = source.objects() {
            template.runtime_env().register_object_store(table::objects_url().as_ref(), objects);
        }
        let (live, source, schema) = (source.live_tables(), Arc::new(source), storage::flow_schema());
        let threads = Some(threads);
        Ok(Engine { shared: Arc::new(Shared { source, live, schema, limits, geo, slots, template, threads }) })
    }

    /// The limits it was made with.
    pub fn limits(&self) -> &QueryLimits {
        &self.shared.limits
    }

    /// The stored columns of `flows`. In SQL the computed column `t_start` comes behind them.
    pub fn flow_schema(&self) -> SchemaRef {
        self.shared.schema.clone()
    }

    /// Answers one SQL statement that reads: SELECT, EXPLAIN, SHOW, DESCRIBE. All of it sees one snapshot.
    ///
    /// # Errors
    /// [`QueryError::Sql`] with the place where the text is wrong, [`QueryError::ReadOnly`] for what does more than
    /// read, [`QueryError::Busy`], and what goes wrong in reading the data folder.
    pub async fn sql(&self, text: &str) -> Result<QueryStream, QueryError> {
        self.sql_with(text, Parameters::default()).await
    }

    /// The same with values for the `?` or `$1` of the statement.
    ///
    /// # Errors
    /// [`QueryError::Parameters`] when the values do not fit the statement, otherwise as [`Engine::sql`].
    pub async fn sql_with(&self, text: &str, parameters: Parameters) -> Result<QueryStream, QueryError> {
        self.run(Request::Sql(text.to_owned(), parameters)).await
    }

    /// Lists flows, newest first; see [`FlowQuery`].
    ///
    /// # Errors
    /// [`QueryError::Filter`] with the place where the filter or the list of columns is wrong, otherwise as
    /// [`Engine::sql`].
    pub async fn flows(&self, query: FlowQuery) -> Result<QueryStream, QueryError> {
        self.run(Request::Flows(query)).await
    }

    /// Plans on a query thread, and leaves the rows to be computed there.
    async fn run(&self, request: Request) -> Result<QueryStream, QueryError> {
        let running = self.on_query_thread(async move |shared| start(&shared, request).await).await?;
        Ok(QueryStream::new(running, self.shared.clone()))
    }

    /// Does `work` on a query thread, within the time limit of a query. It is dropped with the future given back.
    pub(crate) async fn on_query_thread<T: Send + 'static, W>(
        &self,
        work: impl FnOnce(Arc<Shared>) -> W + Send + 'static,
    ) -> Result<T, QueryError>
    where
        W: Future<Output = Result<T, QueryError>> + Send,
    {
        let Some(threads) = &self.shared.threads else { return Err(QueryError::Stopped) };
        let shared = self.shared.clone();
        let mut task = AbortOnDrop(threads.spawn(async move {
            match shared.limits.time_max {
                None => work(shared).await,
                Some(limit) => match tokio::time::timeout(limit, work(shared)).await {
                    Ok(result) => result,
                    Err(_) => Err(QueryError::TimeLimit { limit, read: Reading::default() }),
                },
            }
        }));
        (&mut task.0).await.map_err(|_| QueryError::Stopped)?
    }
}

/// What was asked.
pub(crate) enum Request {
    Sql(String, Parameters),
    Flows(FlowQuery),
}

impl Request {
    async fn plan(&self, session: &Session) -> Result<LogicalPlan, Failure> {
        match self {
            Request::Flows(query) => query.plan(session).await,
            Request::Sql(text, parameters) => session.plan(parse::statement(text, parameters)?).await,
        }
    }

    /// An error of planning as a mistake in the text.
    fn mistake(&self, error: &DataFusionError, session: &Session) -> QueryError {
        let (kind, text) = match self {
            Request::Sql(text, _) => (TextKind::Sql, text.as_str()),
            Request::Flows(query) => (TextKind::Filter, query.filter.as_deref().unwrap_or_default()),
        };
        let complaint = Complaint::new(error, session).of_either_side(error, text);
        kind.error(Located::complaint(text, complaint))
    }
}

/// An error while planning: worded already, or still the planner's own.
pub(crate) enum Failure {
    Said(QueryError),
    Planner(DataFusionError),
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Failure {
        Failure::Said(error)
    }
}

impl From<DataFusionError> for Failure {
    fn from(error: DataFusionError) -> Failure {
        Failure::Planner(error)
    }
}

async fn start(shared: &Arc<Shared>, request: Request) -> Result<Running, QueryError> {
    let limits = &shared.limits;
    let begun = Instant::now();
    let mut session = Session::open(shared).await?;
    let plan = physical(&session, &request, Some(limits.memory_bytes)).await?;
    session.explains = matches!(plan.name(), "ExplainExec" | "AnalyzeExec");
    let stop = Arc::new(Stop::new());
    let plan = stop::stoppable(plan, &stop).map_err(|e| failed(&e))?;
    let rows = execute_stream(plan, session.state.task_ctx()).map_err(|e| failed(&e))?;
    let time_left = limits.time_max.map(|max| max.saturating_sub(begun.elapsed()));
    Ok(stream::spawn(rows, limits, time_left, stop, session))
}

/// The plan that would be executed. With `live_bytes_max` it will be, and live tables are read, into that much memory.
pub(crate) async fn physical(
    session: &Session,
    request: &Request,
    live_bytes_max: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>, QueryError> {
    if matches!(request, Request::Flows(_)) {
        // A listing is planned by what there is, and reads no live table.
        session.take_snapshots().await?;
    }
    let state = &session.state;
    let plan = match request.plan(session).await {
        Ok(plan) => plan,
        Err(Failure::Said(error)) => return Err(error),
        Err(Failure::Planner(error)) => return Err(request.mistake(&error, session)),
    };
    // Analysis and optimization still find mistakes, such as a literal in an IN list that is no address.
    let plan = state.optimize(&plan).map_err(|e| request.mistake(&e, session))?;
    if let Some(bytes_max) = live_bytes_max {
        live::load(&plan, state, bytes_max).await?;
    }
    session.take_snapshots().await?;
    state.query_planner().create_physical_plan(&plan, state).await.map_err(|e| request.mistake(&e, session))
}

pub(crate) fn failed(error: &DataFusionError) -> QueryError {
    QueryError::Execution { message: plain(&message_of(error)) }
}

/// One query being prepared or answered: its view of the data, and what it may still cost.
pub(crate) struct Session {
    pub(crate) state: SessionState,
    pub(crate) budget: Arc<ScanBudget>,
    /// Whether the answer ends with what was read of which segments.
    pub(crate) explains: bool,
    /// In the order of [`Table::ALL`]. Held until the answer is complete, so that the files stay, and one query is one query.
    snapshots: [SnapshotCell; Table::ALL.len()],
    source: Arc<dyn FlowSource>,
    tables: Vec<&'static str>,
    _permit: OwnedSemaphorePermit,
}

impl Session {
    /// Takes the place of a query.
    pub(crate) async fn open(shared: &Shared) -> Result<Session, QueryError> {
        let busy = |_| QueryError::Busy { max: shared.limits.concurrent_max.max(1) };
        let permit = shared.slots.clone().try_acquire_owned().map_err(busy)?;
        let geo = shared.geo.clone();
        tokio::task::spawn_blocking(move || geo.refresh()).await.map_err(|_| QueryError::Stopped)?;
        Session::new(shared, permit).map_err(|e| failed(&e))
    }

    /// The logical plan of a statement.
    pub(crate) async fn plan(&self, statement: Statement) -> Result<LogicalPlan, Failure> {
        let plan = self.state.statement_to_plan(statement).await?;
        // The parser has refused these already; this holds should it overlook one.
        let only_read = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        only_read.verify_plan(&plan)?;
        Ok(plan)
    }

    fn new(shared: &Shared, permit: OwnedSemaphorePermit) -> Result<Session, DataFusionError> {
        let budget = Arc::new(ScanBudget::new(shared.limits.scan_bytes_max));
        let snapshots: [SnapshotCell; Table::ALL.len()] = Default::default();
        let objects = shared.source.objects();
        let schema = MemorySchemaProvider::new();
        for (table, snapshot) in Table::ALL.into_iter().zip(&snapshots) {
            let provider = StoredTable::new(table, snapshot.clone(), budget.clone(), objects.clone());
            schema.register_table(table.name().to_owned(), Arc::new(provider))?;
        }
        for table in &shared.live {
            let provider = Arc::new(LiveProvider::new(table.clone()));
            schema.register_table(table.name().to_owned(), with_t_start(table.name(), provider)?)?;
        }
        let tables =
            Table::ALL.into_iter().map(Table::name).chain(shared.live.iter().map(|table| table.name())).collect();
        let catalog = MemoryCatalogProvider::new();
        catalog.register_schema(SCHEMA, Arc::new(schema))?;
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        let mut state = shared.template.clone();
        state.register_catalog_list(Arc::new(catalogs));
        // What `now()` is.
        state.mark_start_execution();
        let source = shared.source.clone();
        Ok(Session { state, budget, explains: false, snapshots, source, tables, _permit: permit })
    }

    /// What a stored table holds, once that has been taken.
    pub(crate) fn snapshot_of(&self, table: Table) -> Option<&Snapshot> {
        self.snapshots[table as usize].get()
    }

    /// What the stored tables hold from here on, as far as this query goes.
    async fn take_snapshots(&self) -> Result<(), QueryError> {
        let (source, snapshots) = (self.source.clone(), self.snapshots.clone());
        if snapshots.iter().all(|snapshot| snapshot.get().is_some()) {
            return Ok(());
        }
        let take = move || {
            for (table, snapshot) in Table::ALL.into_iter().zip(snapshots) {
                // Nobody else sets them.
                let _ = snapshot.set(source.snapshot_of(table)?);
            }
            Ok::<_, StorageError>(())
        };
        Ok(tokio::task::spawn_blocking(take).await.map_err(|_| QueryError::Stopped)??)
    }
}

impl Names for Session {
    fn functions(&self) -> Vec<String> {
        function_names(&self.state)
    }

    fn tables(&self) -> Vec<&'static str> {
        self.tables.clone()
    }

    fn absent(&self, table: &str) -> Option<String> {
        self.source.absent(table)
    }
}

fn template(limits: &QueryLimits, geo: &Arc<GeoDatabases>) -> Result<SessionState, DataFusionError> {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(limits.threads.max(1))
        .with_batch_size(BATCH_ROWS);
    let options = config.options_mut();
    options.sql_parser.collect_spans = true;
    options.execution.parquet.reorder_filters = true;
    let mut analyzer = Analyzer::new();
    analyzer.rules.insert(0, Arc::new(AddressRule));
    let mut builder = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime(limits)?)
        .with_default_features()
        .with_analyzer_rules(analyzer.rules)
        .with_optimizer_rule(Arc::new(AddressKeys));
    // Nothing that names a file is reachable from SQL.
    *builder.file_formats() = Some(Vec::new());
    *builder.table_factories() = Some(Default::default());
    builder.expr_planners().get_or_insert_default().insert(0, Arc::new(TextAsAddress));
    let scalar = builder.scalar_functions().get_or_insert_default();
    scalar.retain(|f| !UNBOUNDED.contains(&f.name()));
    scalar.extend(Name::ALL.map(functions::function));
    scalar.extend(geo::functions(geo));
    scalar.iter_mut().for_each(|function| *function = times::of_all_times(function.clone()));
    Ok(builder.build())
}

fn runtime(limits: &QueryLimits) -> Result<Arc<RuntimeEnv>, DataFusionError> {
    RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(SharedMemory::new(limits.memory_bytes)))
        // A query that does not fit is refused; spilling would compete with the writer for the disk.
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
        .with_metadata_cache_limit(FOOTER_CACHE_BYTES)
        .build_arc()
}

fn function_names(state: &SessionState) -> Vec<String> {
    let ours = ["host", "net", "port"].map(str::to_owned);
    let scalar = state.scalar_functions().keys().cloned();
    let aggregate = state.aggregate_functions().keys().cloned();
    let window = state.window_functions().keys().cloned();
    ours.into_iter().chain(scalar).chain(aggregate).chain(window).collect()
}
