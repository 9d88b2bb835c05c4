//! `connectionPool` of a DestinationRule: which HTTP is spoken upstream.

use crate::{
    diagnostic::{Code, Position},
    source::decode::{Fields, Object, Path, Reader},
    spec::destination_rule::ConnectionPool,
};

const POOL: Fields = Fields { honoured: &["http"], not_yet: &["tcp"], silent: &[] };
const HTTP: Fields = Fields {
    honoured: &["h2UpgradePolicy", "useClientProtocol", "maxConcurrentStreams"],
    not_yet: &["http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries", "idleTimeout"],
    silent: &[],
};

/// `None` where nothing is there: what is there replaces the rule's, whatever it says.
pub(super) fn field(r: &mut Reader<'_>, object: &mut Object<'_, '_, '_>) -> Option<ConnectionPool> {
    let path = object.path.field("connectionPool");
    let mut settings = object.field("connectionPool").and_then(|node| r.object(node, &path))?;
    let mut pool = ConnectionPool::default();
    let http_path = path.field("http");
    if let Some(mut http) = settings.field("http").and_then(|node| r.object(node, &http_path)) {
        pool = read(r, &mut http);
        http.finish(r, &HTTP);
    }
    settings.finish(r, &POOL);
    Some(pool)
}

fn read(r: &mut Reader<'_>, http: &mut Object<'_, '_, '_>) -> ConnectionPool {
    let upgrade = http.text(r, "h2UpgradePolicy");
    let path = http.path.field("h2UpgradePolicy");
    let h2_upgrade = match upgrade {
        Some(("DEFAULT", _)) | None => None,
        Some((text, at)) => upgrade_policy(r, text, at, &path, "write UPGRADE, DO_NOT_UPGRADE or DEFAULT"),
    };
    let use_client_protocol = http.boolean(r, "useClientProtocol").unwrap_or(false);
    if let Some((_, at)) = upgrade.filter(|_| use_client_protocol && h2_upgrade == Some(true)) {
        let message = "UPGRADE contradicts useClientProtocol, which keeps to what the client speaks";
        r.error(Code::CONFLICT, at, &path, message, "remove one of the two");
    }
    let streams = http.integer(r, "maxConcurrentStreams");
    let max_concurrent_streams = streams.and_then(|(number, at)| {
        let streams = u32::try_from(number).ok().filter(|streams| i32::try_from(*streams).is_ok());
        if streams.is_none() {
            let message = format!("{number} is not a number of streams: it must be 0 to {}", i32::MAX);
            r.error(Code::INVALID_VALUE, at, &http.path.field("maxConcurrentStreams"), message, "");
        }
        streams
    });
    ConnectionPool { h2_upgrade, use_client_protocol, max_concurrent_streams: max_concurrent_streams.unwrap_or(0) }
}

/// `h2UpgradePolicy`, here and in the MeshConfig.
pub(super) fn upgrade_policy(
    r: &mut Reader<'_>,
    text: &str,
    at: Position,
    path: &Path<'_>,
    hint: &str,
) -> Option<bool> {
    match text {
        "UPGRADE" => Some(true),
        "DO_NOT_UPGRADE" => Some(false),
        other => {
            r.error(Code::INVALID_VALUE, at, path, format!("`{other}` is not a policy of upgrades"), hint);
            None
        }
    }
}
