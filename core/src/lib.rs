//! meshring core
