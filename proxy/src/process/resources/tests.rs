use clap::Parser as _;

use super::*;

const MIB: u64 = 1024 * 1024;

struct Root(PathBuf);

impl Root {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("meshring-resources-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tuning(arguments: &[&str]) -> Tuning {
    let all = ["meshring-proxy", "--workload=a/b"].into_iter().chain(arguments.iter().copied());
    crate::config::Config::try_parse_from(all).unwrap().tuning
}

#[test]
fn the_least_limit_of_a_version_2_hierarchy_holds() {
    let root = Root::new("v2")
        .file("sys/fs/cgroup/pods/memory.max", "268435456\n")
        .file("sys/fs/cgroup/pods/pod-1/memory.max", "max\n")
        .file("sys/fs/cgroup/pods/memory.current", "240000000\n")
        .file("sys/fs/cgroup/pods/memory.stat", "anon 1\ninactive_file 20000000\nactive_file 5\n");
    let memory = Memory::among("0::/pods/pod-1\n", &root.0, 8_192 * MIB);
    assert_eq!(memory.bytes, 256 * MIB);
    assert_eq!(memory.to_string(), "256 MiB (control group)");
    let cgroup = memory.cgroup.unwrap();
    assert_eq!(cgroup.used_bytes(), Some(220_000_000));
    assert!(!cgroup.is_nearly_full(256 * MIB));
    assert!(cgroup.is_nearly_full(245 * MIB), "82 % of the larger, more than 85 % of the smaller limit");
}

#[test]
fn a_version_1_hierarchy_is_found_where_only_its_end_is_mounted() {
    let root = Root::new("v1").file("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n");
    let groups = "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n";
    assert_eq!(Memory::among(groups, &root.0, 8_192 * MIB).bytes, 512 * MIB);
    // What a hierarchy of version 1 without a limit says.
    let root = root.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    let memory = Memory::among(groups, &root.0, 8_192 * MIB);
    assert_eq!(memory, Memory { bytes: 8_192 * MIB, cgroup: None });
}

#[test]
fn this_machine_has_memory() {
    let memory = Memory::of_this_process();
    assert!((64 * MIB..1 << 50).contains(&memory.bytes), "{memory}");
}

#[test]
fn defaults_are_shares_of_what_there_is() {
    let machine = Memory { bytes: 16_384 * MIB, cgroup: None };
    let cgroup = Some(Cgroup { dir: PathBuf::new(), files: &V2 });
    let small = Memory { bytes: 256 * MIB, cgroup };
    let of = |memory, workers, descriptors| limits(&tuning(&[]), workers, descriptors, memory);
    assert_eq!(of(&machine, 2, 20_000).connections_max, 7_500, "a quarter of the descriptors is for upstreams");
    assert_eq!(of(&machine, 2, 1 << 30).connections_max, CONNECTIONS_PER_WORKER_MAX);
    assert_eq!(of(&machine, 2, 1 << 30).buffer_bytes_max, BUDGET_BYTES_MAX);
    assert_eq!(of(&small, 2, 1 << 30).connections_max, 4_096);
    assert_eq!(of(&small, 2, 1 << 30).buffer_bytes_max, 32 * MIB as usize);
    assert_eq!(of(&small, 64, 1 << 30).buffer_bytes_max, BUDGET_BYTES_MIN);
    assert_eq!(of(&machine, 8, u64::MAX).connections_max, CONNECTIONS_PER_WORKER_MAX);
}

#[test]
fn what_the_command_line_says_holds() {
    let arguments = [
        "--head-timeout=1500ms",
        "--min-body-rate=0",
        "--body-grace=2s",
        "--buffer-bytes-max=1048576",
        "--connections-max=60000",
        "--request-body-max=1000",
        "--tunnel-idle-timeout=60s",
        "--idle-timeout=5s",
        "--connect-timeout=250ms",
        "--response-timeout=15s",
        "--upstream-idle-timeout=2s",
        "--upstream-idle-max=0",
    ];
    let limits = limits(&tuning(&arguments), 2, 100, &Memory { bytes: MIB, cgroup: None });
    let expected = Limits {
        head_ms_max: 1_500,
        body_rate_min: 0,
        body_grace_ms: 2_000,
        request_body_bytes_max: 1_000,
        tunnel_idle_ms_max: 60_000,
        idle_ms_max: 5_000,
        connect_ms_max: 250,
        response_ms_max: 15_000,
        pool: PoolLimits { idle_ms_max: 2_000, idle_max: 0 },
        buffer_bytes_max: 1_048_576,
        connections_max: 60_000,
        ..Limits::default()
    };
    assert_eq!(limits, expected);
}
