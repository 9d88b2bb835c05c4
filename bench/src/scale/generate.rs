//! A large configuration: services with endpoints, and a route for each, in few large files.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::limits::{SCALE_FILE_BYTES, SLICE_ENDPOINTS_MAX};

/// Services in one namespace.
const NAMESPACE_SERVICES: usize = 1000;

/// What to generate: `routes` services with a route each, and `endpoints` spread evenly over them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) routes: usize,
    pub(super) endpoints: usize,
}

/// What was written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

pub(super) fn service_name(index: usize) -> String {
    format!("svc-{index}")
}

pub(super) fn namespace(index: usize) -> String {
    format!("ns-{}", index / NAMESPACE_SERVICES)
}

impl Shape {
    /// Numbers of the endpoints of one service; they differ by at most one between services.
    fn endpoints_of(self, index: usize) -> std::ops::Range<usize> {
        let begin = |index: usize| index * self.endpoints / self.routes;
        begin(index)..begin(index + 1)
    }

    /// The documents of one service: Service, EndpointSlices, VirtualService.
    fn document(self, index: usize) -> String {
        let (name, namespace) = (service_name(index), namespace(index));
        let metadata = format!("metadata:\n  name: {name}\n  namespace: {namespace}\n");
        let mut text = format!(
            "apiVersion: v1\nkind: Service\n{metadata}spec:\n  ports:\n  - name: http\n    port: 80\n    targetPort: \
             8080\n---\n"
        );
        let endpoints: Vec<usize> = self.endpoints_of(index).collect();
        for (number, slice) in endpoints.chunks(SLICE_ENDPOINTS_MAX).enumerate() {
            text.push_str(&format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{number}\n  \
                 namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: \
                 IPv4\nports:\n- name: http\n  port: 8080\nendpoints:\n"
            ));
            for endpoint in slice {
                text.push_str(&format!(
                    "- addresses:\n  - {}\n  conditions:\n    ready: true\n",
                    endpoint_address(*endpoint)
                ));
            }
            text.push_str("---\n");
        }
        text.push_str(&format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\n{metadata}spec:\n  hosts:\n  - {name}\n  \
             http:\n  - route:\n    - destination:\n        host: {name}\n---\n"
        ));
        text
    }

    /// Writes all files into `dir`.
    pub(super) fn write(self, dir: &Path) -> io::Result<Written> {
        let mut written = Written::default();
        let mut open: Option<(BufWriter<File>, u64)> = None;
        for index in 0..self.routes {
            let document = self.document(index);
            let (mut file, bytes) = match open.take() {
                Some((file, bytes)) if bytes + document.len() as u64 <= SCALE_FILE_BYTES => (file, bytes),
                full => {
                    if let Some((mut file, _)) = full {
                        file.flush()?;
                    }
                    let path: PathBuf = dir.join(format!("mesh-{:03}.yaml", written.files));
                    written.files += 1;
                    (BufWriter::new(File::create(path)?), 0)
                }
            };
            file.write_all(document.as_bytes())?;
            written.bytes += document.len() as u64;
            open = Some((file, bytes + document.len() as u64));
        }
        if let Some((mut file, _)) = open {
            file.flush()?;
        }
        Ok(written)
    }
}

/// 10.0.0.1 and up.
fn endpoint_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits().saturating_add(u32::try_from(index).unwrap_or(u32::MAX)))
}

/// The VirtualService of service 0 with a second destination, service 1, and `weight` percent for the first.
pub(super) fn split(weight: u32) -> String {
    let (first, second, namespace, rest) = (service_name(0), service_name(1), namespace(0), 100 - weight);
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: {first}\n  namespace: \
         {namespace}\nspec:\n  hosts:\n  - {first}\n  http:\n  - route:\n    - destination:\n        host: {first}\n      \
         weight: {weight}\n    - destination:\n        host: {second}\n      weight: {rest}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use super::*;

    #[test]
    fn every_route_and_endpoint_is_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { routes: 7, endpoints: 1000 };
        let written = shape.write(dir.path()).unwrap();
        let text = fs::read_to_string(dir.path().join("mesh-000.yaml")).unwrap();
        assert_eq!(written, Written { files: 1, bytes: text.len() as u64 });
        for kind in ["Service", "VirtualService"] {
            assert_eq!(text.matches(&format!("kind: {kind}\n")).count(), 7);
        }
        // 142 or 143 endpoints are two slices.
        assert_eq!(text.matches("kind: EndpointSlice\n").count(), 14);
        let addresses: HashSet<&str> = text.lines().filter_map(|line| line.strip_prefix("  - 10.")).collect();
        assert_eq!(addresses.len(), 1000);
        assert!(addresses.contains("0.0.1") && addresses.contains("0.3.232"));
    }

    #[test]
    fn endpoints_are_spread_evenly() {
        for (routes, endpoints) in [(3, 10), (10, 3), (4, 4)] {
            let shape = Shape { routes, endpoints };
            let counts: Vec<usize> = (0..routes).map(|index| shape.endpoints_of(index).len()).collect();
            assert_eq!(counts.iter().sum::<usize>(), endpoints);
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
        }
    }

    #[test]
    fn a_file_ends_before_it_gets_too_large() {
        let dir = tempfile::tempdir().unwrap();
        let written = Shape { routes: 60_000, endpoints: 0 }.write(dir.path()).unwrap();
        assert_eq!(written.files, 2);
        for entry in fs::read_dir(dir.path()).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= SCALE_FILE_BYTES);
        }
    }
}
