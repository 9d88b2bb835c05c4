//! probe
fn main() {
    let paths: Vec<std::path::PathBuf> = std::env::args().skip(1).map(Into::into).collect();
    let (files, mut d) = meshring_ctl::source::discover(&paths);
    let t = std::time::Instant::now();
    let mut cache = meshring_ctl::source::Cache::default();
    let r = meshring_ctl::source::read_files(&files, &mut cache);
    eprintln!("read {} resources in {:?}", r.resources.len(), t.elapsed());
    d.extend(r.diagnostics);
    let t = std::time::Instant::now();
    let (world, more) = meshring_ctl::spec::World::assemble(r.resources);
    eprintln!("assemble {:?}", t.elapsed());
    d.extend(more);
    let t = std::time::Instant::now();
    d.extend(world.analyze());
    eprintln!("analyze {:?}", t.elapsed());
    for d in &d { println!("{d}"); }
    let t = std::time::Instant::now();
    let table = meshring_ctl::compile::compile(&world, &meshring_ctl::compile::NoDns).unwrap();
    eprintln!("compile {:?}", t.elapsed());
    if table.routes.len() < 50 { println!("{table:#?}"); }
}
