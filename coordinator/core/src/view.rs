//! What people are shown of jobs and nodes.
