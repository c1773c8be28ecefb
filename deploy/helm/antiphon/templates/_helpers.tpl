{{- define "antiphon.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "antiphon.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: orchestrator
{{- end }}

{{- define "antiphon.labels" -}}
{{ include "antiphon.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* A setting as text. Helm reads every number as a float, which it writes as 8.6e+09 when it is large. */}}
{{- define "antiphon.text" -}}
{{- $key := .key }}
{{- if kindIs "map" .value }}
{{- fail (printf "settings: %s is a table; write settings of a section as \"section.key: value\", and pairs as a list, such as schedule.weights: [team-a=2, team-b=1]" $key) }}
{{- else if kindIs "slice" .value }}
{{- range $index, $one := .value }}{{ if $index }},{{ end }}{{ include "antiphon.text" (dict "key" $key "value" $one) }}{{ end }}
{{- else if and (kindIs "float64" .value) (eq .value (floor .value)) }}
{{- int64 .value }}
{{- else }}
{{- toString .value }}
{{- end }}
{{- end }}

{{- /* Every setting as a variable: a change of one is a change of the pods, and `check` in a pod shows what holds. */}}
{{- define "antiphon.environment" -}}
{{- if and .Values.policies .Values.policyProfile }}{{ fail "policies and policyProfile exclude each other; give one of them" }}{{ end }}
{{- if and (hasPrefix "file:" .Values.payloads.url) (not .Values.payloads.existingClaim) }}{{ fail "payloads.url is a folder; give payloads.existingClaim, which all replicas share" }}{{ end }}
{{- $settings := dict
  "data" "/var/lib/antiphon"
  "authority" "/etc/antiphon/authority"
  "listen" "0.0.0.0:7443"
  "join_listen" "0.0.0.0:7444"
  "advertise" (printf "$(POD_NAME).%s-replicas.$(POD_NAMESPACE).svc.%s:7443" (include "antiphon.name" .) .Values.clusterDomain)
  "hosts" (printf "%s,%s.$(POD_NAMESPACE),%s.$(POD_NAMESPACE).svc,%s.$(POD_NAMESPACE).svc.%s" (include "antiphon.name" .) (include "antiphon.name" .) (include "antiphon.name" .) (include "antiphon.name" .) .Values.clusterDomain)
  "store" (printf "etcd://%s/%s" (join "," .Values.store.endpoints) .Values.store.prefix)
  "store_ca" "/etc/antiphon/store/ca.crt"
  "store_cert" "/etc/antiphon/store/tls.crt"
  "store_key" "/etc/antiphon/store/tls.key"
  "archive" .Values.archive.url
  "archive_password_file" "/etc/antiphon/archive/password"
  "payloads" .Values.payloads.url
}}
{{- if .Values.archive.caSecret.name }}
{{- $sign := contains "?" .Values.archive.url | ternary "&" "?" }}
{{- $_ := set $settings "archive" (printf "%s%ssslmode=verify-full&sslrootcert=/etc/antiphon/archive-ca/ca.crt" .Values.archive.url $sign) }}
{{- end }}
{{- if .Values.store.maxBytes }}{{ $_ := set $settings "store_max_bytes" .Values.store.maxBytes }}{{ end }}
{{- if .Values.archive.retention }}{{ $_ := set $settings "archive_retention" .Values.archive.retention }}{{ end }}
{{- if .Values.policies }}{{ $_ := set $settings "policy_folder" "/etc/antiphon/policies" }}{{ end }}
{{- if .Values.policyProfile }}{{ $_ := set $settings "policy_profile" .Values.policyProfile }}{{ end }}
{{- if .Values.metrics.enabled }}
{{- $_ := set $settings "telemetry.metrics_port" "9464" }}
{{- $_ := set $settings "telemetry.metrics_host" "0.0.0.0" }}
{{- end }}
{{- range $key, $value := .Values.settings }}{{ $_ := set $settings $key $value }}{{ end }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- range $key, $value := $settings }}
- name: ANTIPHON_ORCHESTRATOR_{{ $key | replace "." "_" | upper }}
  value: {{ include "antiphon.text" (dict "key" $key "value" $value) | quote }}
{{- end }}
{{- end }}
