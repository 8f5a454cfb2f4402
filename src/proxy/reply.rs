//! stub
pub mod console;
pub mod session;
use crate::plan::unroutable::Unroutable;
use crate::wire::notice::Notice;
pub fn unroutable(_r: &Unroutable) -> Notice { Notice{severity:"ERROR", sqlstate:"0A000".into(), message:"refused".into(), detail:None,hint:None} }
pub fn put_explanation(_out: &mut Vec<u8>, _rows: &[(String,String)], _d: bool) {}
