use sketches::SketchError;

/// A task that cannot be, or a question no task can answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A setting outside what is supported.
    #[error("{}{field} is '{value}': {allowed}", task_prefix(.task))]
    Setting {
        /// Name of the task; empty outside of any.
        task: String,
        /// Which setting of it.
        field: &'static str,
        /// What it is.
        value: String,
        /// What is wrong, or what it may be.
        allowed: String,
    },
    /// A sketch refused.
    #[error("{}{source}", task_prefix(.task))]
    Sketch {
        /// Name of the task.
        task: String,
        /// Why.
        source: SketchError,
    },
    /// Windows end faster than they can be read.
    #[error("windows end faster than they can be read; ask for the last one, or again")]
    Busy,
    /// More memory than there is room for.
    #[error("it takes {bytes} bytes")]
    Memory {
        /// How much.
        bytes: usize,
    },
    /// Nothing answers this.
    #[error("{0}")]
    Question(String),
}

impl TaskError {
    pub(crate) fn new(field: &'static str, value: impl Into<String>, allowed: impl Into<String>) -> TaskError {
        TaskError::Setting { task: String::new(), field, value: value.into(), allowed: allowed.into() }
    }

    /// The same error, of a task.
    pub(crate) fn of(self, name: &str) -> TaskError {
        match self {
            TaskError::Setting { field, value, allowed, .. } => {
                TaskError::Setting { task: name.to_owned(), field, value, allowed }
            }
            TaskError::Sketch { source, .. } => TaskError::Sketch { task: name.to_owned(), source },
            other => other,
        }
    }
}

impl From<SketchError> for TaskError {
    fn from(source: SketchError) -> TaskError {
        TaskError::Sketch { task: String::new(), source }
    }
}

fn task_prefix(task: &str) -> String {
    if task.is_empty() { String::new() } else { format!("task '{task}': ") }
}
