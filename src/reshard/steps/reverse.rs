//! After a cutover: what the next one needs, which goes the other way. That changes are brought back is the followers' work.
//!
//! What must stay true: every proxy has the new map when it is called; what refuses writes by an older one stays.

use super::ready;
use crate::reshard::job::{Job, StepError};

/// Makes ready for a cutover back; the job's direction is that of this next one.
///
/// # Errors
/// [`StepError`].
pub async fn run(job: &Job) -> Result<(), StepError> {
    ready::run(job).await
}
