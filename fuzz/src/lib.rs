//! What several fuzz targets share.

pub mod bodies;
pub mod judge;
pub mod mesh;
pub mod uri;
