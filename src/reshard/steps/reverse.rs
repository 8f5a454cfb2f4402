//! After a cutover: what the next one needs, which goes the other way. That changes are brought back is the followers' work.
//!
//! What must stay true: reference tables are written again only when every proxy has the new map: it is called then.

use super::{activate::open_reference, ready};
use crate::reshard::job::{Job, StepError};

/// Makes ready for a cutover back; the job's direction is that of this next one.
///
/// # Errors
/// [`StepError`].
pub async fn run(job: &Job) -> Result<(), StepError> {
    open_reference(&job.turned()).await?;
    ready::run(job).await
}
