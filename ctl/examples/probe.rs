//! probe
fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/self/stat").unwrap(); let f: Vec<_> = s.rsplit(')').next().unwrap().split_whitespace().collect(); (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0 }
fn main() {
    let paths: Vec<std::path::PathBuf> = std::env::args().skip(1).map(Into::into).collect();
    let (files, mut d) = meshring_ctl::source::discover(&paths);
    let t = std::time::Instant::now();
    let mut cache = meshring_ctl::source::Cache::default();
    let r = meshring_ctl::source::read_files(&files, &mut cache);
    eprintln!("cpu={:.2} read {} resources in {:?}", cpu(), r.resources.len(), t.elapsed());
    d.extend(r.diagnostics);
    let t = std::time::Instant::now();
    let (world, more) = meshring_ctl::spec::World::assemble(r.resources);
    eprintln!("cpu={:.2} assemble {:?}", cpu(), t.elapsed());
    d.extend(more);
    let t = std::time::Instant::now();
    d.extend(world.analyze());
    eprintln!("cpu={:.2} analyze {:?}", cpu(), t.elapsed());
    for d in &d { println!("{d}"); }
    let t = std::time::Instant::now();
    let table = meshring_ctl::compile::compile(&world, &meshring_ctl::compile::NoDns).unwrap();
    eprintln!("cpu={:.2} compile {:?}", cpu(), t.elapsed());
    if table.routes.len() < 50 { println!("{table:#?}"); }
}
