package kernel

import (
	"bytes"
	"encoding/json"
	"slices"
)

// MarshalJSON leaves out the fields that are unknown.
func (p Process) MarshalJSON() ([]byte, error) {
	type plain Process // without this method
	return without(plain(p), p.Unknown)
}

// MarshalJSON leaves out the fields that are unknown.
func (m Module) MarshalJSON() ([]byte, error) {
	type plain Module
	return without(plain(m), m.Unknown)
}

// without encodes a struct as JSON, without some of its fields.
func without(v any, unknown []string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // left to whoever calls
	if err := e.Encode(v); err != nil || len(unknown) == 0 {
		return b.Bytes(), err
	}
	d := json.NewDecoder(&b)
	if _, err := d.Token(); err != nil { // {
		return nil, err
	}
	out := []byte{'{'}
	for d.More() {
		var value json.RawMessage
		key, err := d.Token()
		if err == nil {
			err = d.Decode(&value)
		}
		if err != nil {
			return nil, err
		}
		name, _ := key.(string)
		if slices.Contains(unknown, name) {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, '"'), name...), '"', ':')
		out = append(out, value...)
	}
	return append(out, '}'), nil
}
