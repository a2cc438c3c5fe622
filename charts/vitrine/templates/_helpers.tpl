{{/* Labels of everything. */}}
{{- define "vitrine.labels" -}}
app.kubernetes.io/part-of: vitrine
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What tells the pods of one part from all others; it can never change. Takes the context and the part's name. */}}
{{- define "vitrine.selector" -}}
app.kubernetes.io/name: vitrine-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end }}

{{- define "vitrine.image" -}}
{{- $image := .Values.image -}}
{{ $image.repository }}{{ if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{/* Every container: no root, nothing to gain, nothing to write but what is mounted. */}}
{{- define "vitrine.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "vitrine.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* A file of manifests for the namespace of the release, with the chart's labels. Takes the context and the file's path. */}}
{{- define "vitrine.manifests" -}}
{{- $context := index . 0 -}}
{{- $labels := include "vitrine.labels" $context | fromYaml -}}
{{- range $text := regexSplit "(?m)^---$" ($context.Files.Get (index . 1)) -1 }}
{{- $manifest := $text | replace "vitrine-system" $context.Release.Namespace | fromYaml }}
{{- $metadata := $manifest.metadata }}
{{- $_ := set $metadata "labels" (merge dict ($metadata.labels | default dict) $labels) }}
---
{{ toYaml $manifest }}
{{- end }}
{{- end }}
