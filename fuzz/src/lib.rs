//! What several fuzz targets share.

pub mod bodies;
pub mod mesh;
pub mod reference;
pub mod uri;
