package detect

import (
	"encoding/json"
	"testing"

	"vmscope/docs/checks"
)

func TestMarked(t *testing.T) {
	b := []byte{0x34, 0x12, 0, 0x81, 0xff, 0xff, 0xff, 0xff, 0x90}
	for text, want := range map[string]int{
		"0xffffffff81001234":            8,
		"0xffffffff81001234, init_cred": 8,
		"0xffffffff81001235":            0,
		"3412":                          2,
		"341200 (xor al, 0x12)":         3,
		"3413":                          0,
		"user 5":                        0,
		"0":                             0,
		"":                              0,
		"0xffffffff81001234ff":          0,
	} {
		if n := marked(text, b); n != want {
			t.Errorf("%q: %d bytes, want %d", text, n, want)
		}
	}
}

func TestBytes(t *testing.T) {
	text, err := json.Marshal(Place{Found: Bytes{1, 0xfe}})
	if err != nil || string(text) != `{"number":0,"addr":"0x0","found":"01fe"}` {
		t.Errorf("%s, %v", text, err)
	}
	var p Place
	if err := json.Unmarshal(text, &p); err != nil || string(p.Found) != "\x01\xfe" {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestPages: each check has its page.
func TestPages(t *testing.T) {
	names := []string{"contradictions"}
	for _, d := range All() {
		names = append(names, d.Name())
	}
	for _, name := range names {
		page := checks.Page(name)
		if len(page) < 3 {
			t.Errorf("%s has a page of %d sections", name, len(page))
		}
		for _, s := range page {
			if s.Title == "" || s.Text == "" {
				t.Errorf("%s: an empty section %q", name, s.Title)
			}
		}
	}
	if checks.Page("nonsense") != nil || checks.Page("../disks") != nil {
		t.Error("pages that are not there")
	}
}
