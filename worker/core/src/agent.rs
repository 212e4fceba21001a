//! A worker as a machine: what it runs, reports and is told.
