//! Power cuts, at any moment of a program's life.
//!
//! [`record`] has a real program run under `strace` and reads what it did to its files, call by call. [`disk`] is a disk
//! that does what is promised and no more: what was synced is there, and of what was not, anything may be: all, nothing,
//! some calls and not others, some sectors of a call and not others, lengths without contents, names without files' contents
//! and contents whose name never came, each directory as far as it likes. So each point of a recording gives as many crashed disks as there are seeds, with no call of the
//! program's changed, and not only for its databases.

pub mod disk;
pub mod record;
