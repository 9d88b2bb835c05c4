//! `meshring analyze`: the same checks as control's, on files alone.

use std::path::PathBuf;

use clap::Args;

use super::{
    DataFormat, Done, Failure,
    output::{self, count},
};
use crate::{
    api::types::{File, findings},
    compile,
    diagnostic::{self, Diagnostic, Severity, has_errors},
    source::{self, Cache, SourceFile},
    spec::World,
};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Files or directories; `-` for stdin
    #[arg(short, long = "filename", required = true, num_args = 1.., value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to print it
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: DataFormat,
}

pub(super) fn run(options: &Options) -> Done {
    let files = super::change::read(&options.files)?;
    let source = |file: &File| SourceFile { path: file.path.as_str().into(), text: file.text.as_str().into() };
    let sources: Vec<SourceFile> = files.files.iter().map(source).collect();
    let (resources, diagnostics, table_error) = check(&sources);
    let list = findings(&diagnostics);
    if options.output == DataFormat::Json {
        output::json(&list)?;
    } else {
        let number = |severity| diagnostics.iter().filter(|diagnostic| diagnostic.severity == severity).count();
        let lines: String = list.iter().map(|finding| format!("{finding}\n")).collect();
        output::print(&format!(
            "{lines}{} in {}: {}, {}\n",
            count(resources, "resource", "resources"),
            count(sources.len(), "file", "files"),
            count(number(Severity::Error), "error", "errors"),
            count(number(Severity::Warning), "warning", "warnings"),
        ));
    }
    match table_error {
        Some(error) => Err(Failure::Refused(error)),
        None if has_errors(&diagnostics) => Err(Failure::Silent),
        None => Ok(()),
    }
}

fn check(sources: &[SourceFile]) -> (usize, Vec<Diagnostic>, Option<String>) {
    let reading = source::read_files(sources, &mut Cache::default());
    let count = reading.resources.len();
    let (world, more) = World::assemble(reading.resources);
    let mut diagnostics = reading.diagnostics;
    diagnostics.extend(more);
    let mut table_error = None;
    // References into resources that could not be read would only be noise.
    if !has_errors(&diagnostics) {
        diagnostics.extend(world.analyze());
        table_error = compile::compile(&world, &compile::NoDns).err().map(|error| error.to_string());
    }
    diagnostic::sort(&mut diagnostics);
    (count, diagnostics, table_error)
}
