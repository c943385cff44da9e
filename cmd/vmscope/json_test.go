package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// object decodes one line of output, which must be one JSON object.
func object(t testing.TB, line string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(line), &m); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
		t.Fatalf("not one line: %q", line)
	}
	return m
}

// objects are the JSON objects of a text, one a line.
func objects(t testing.TB, text string) (out []map[string]any) {
	t.Helper()
	for line := range strings.Lines(text) {
		out = append(out, object(t, line))
	}
	return out
}
