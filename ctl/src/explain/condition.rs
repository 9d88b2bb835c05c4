//! Conditions of rules, and what a request has in their place, for people.

use meshring_core::{
    id::{NamespaceId, RegexId},
    table::{
        ArchivedTable,
        lookup::{RequestView as _, Viewpoint},
        model::{ArchivedCondition, ArchivedStringMatch},
    },
};

use super::question::Question;

fn string_match(table: &ArchivedTable, expected: &ArchivedStringMatch) -> String {
    match expected {
        ArchivedStringMatch::Exact(value) => format!("exact {:?}", value.as_str()),
        ArchivedStringMatch::ExactIgnoreCase(value) => format!("exact {:?} in any case", value.as_str()),
        ArchivedStringMatch::Prefix(value) => format!("prefix {:?}", value.as_str()),
        ArchivedStringMatch::PrefixIgnoreCase(value) => format!("prefix {:?} in any case", value.as_str()),
        ArchivedStringMatch::Regex(id) => format!("regex {:?}", table.regexes[RegexId::from(id).index()].as_str()),
        ArchivedStringMatch::Present => "present".to_owned(),
    }
}

/// What a condition asks for.
pub(super) fn expected(table: &ArchivedTable, condition: &ArchivedCondition) -> String {
    let text = |expected| string_match(table, expected);
    match condition {
        ArchivedCondition::Uri(value) => format!("uri {}", text(value)),
        ArchivedCondition::Scheme(value) => format!("scheme {}", text(value)),
        ArchivedCondition::Method(value) => format!("method {}", text(value)),
        ArchivedCondition::Authority(value) => format!("authority {}", text(value)),
        ArchivedCondition::Header { name, value } => format!("headers[{name}] {}", text(value)),
        ArchivedCondition::WithoutHeader { name, value } => format!("withoutHeaders[{name}] {}", text(value)),
        ArchivedCondition::Query { name, value } => format!("queryParams[{name}] {}", text(value)),
        ArchivedCondition::Port(port) => format!("port {port}"),
        ArchivedCondition::SourceNamespace(id) => {
            format!("sourceNamespace {}", table.namespaces[NamespaceId::from(id).index()])
        }
        ArchivedCondition::SourceLabel { key, value } => {
            format!("sourceLabels[{key}] {value:?}", value = value.as_str())
        }
    }
}

/// What the request has in its place.
pub(super) fn actual(condition: &ArchivedCondition, question: &Question, viewpoint: &Viewpoint) -> String {
    let quoted = |bytes: &[u8]| format!("{:?}", String::from_utf8_lossy(bytes));
    match condition {
        ArchivedCondition::Uri(_) => format!("the path is {}", quoted(question.path())),
        ArchivedCondition::Scheme(_) => format!("the scheme is {}", quoted(question.scheme())),
        ArchivedCondition::Method(_) => format!("the method is {}", quoted(question.method())),
        ArchivedCondition::Authority(_) => format!("the authority is {}", quoted(question.authority())),
        ArchivedCondition::Header { name, .. } | ArchivedCondition::WithoutHeader { name, .. } => {
            let values: Vec<String> = question.header_values(name).map(|value| format!("{value:?}")).collect();
            if values.is_empty() {
                "the request has no such header".to_owned()
            } else {
                format!("its value is {}", values.join(", "))
            }
        }
        ArchivedCondition::Query { .. } => match question.query() {
            None => "the request has no query".to_owned(),
            Some(query) => format!("the query is {}", quoted(query)),
        },
        ArchivedCondition::Port(_) => match question.port {
            Some(port) => format!("the port is {port}"),
            None => "the request names no port, and the service's is another".to_owned(),
        },
        ArchivedCondition::SourceNamespace(_) => format!("the caller's namespace is {}", question.namespace),
        ArchivedCondition::SourceLabel { key, .. } => {
            source_label(viewpoint, key, &question.namespace, &question.workload)
        }
    }
}

/// What a label of the caller is.
pub(super) fn source_label(viewpoint: &Viewpoint, key: &str, namespace: &str, workload: &str) -> String {
    match viewpoint.labels.iter().find(|(name, _)| name == key) {
        Some((_, value)) => format!("the caller's label is {value:?}"),
        None if viewpoint.labels.is_empty() => {
            format!("no Pod or WorkloadEntry says which labels {namespace}/{workload} has")
        }
        None => "the caller has no such label".to_owned(),
    }
}
