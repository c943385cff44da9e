package guestlab

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestHostMirrors(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  mirrors
	}{
		{"nothing", nil, defaultMirrors},
		{"only others' repositories", map[string]string{"sources.list": "deb https://example.org/apt stable main\n"}, defaultMirrors},
		{"one-line", map[string]string{
			"sources.list": "# deb http://no/debian x main\ndeb-src http://src/debian bookworm main\n" +
				"deb [arch=amd64 signed-by=/k] https://a.example/debian/ bookworm main # why\ndeb http://a.example/debian-security bookworm-security main\n",
		}, mirrors{"https://a.example/debian", "http://a.example/debian-security"}},
		{"security follows the mirror", map[string]string{"sources.list.d/x.list": "deb http://m/debian sid main\n"}, mirrors{"http://m/debian", "http://m/debian-security"}},
		{"stanzas", map[string]string{
			"sources.list": "deb cdrom:[disc]/ bookworm main\n",
			"sources.list.d/a.sources": "Types: deb\nURIs: http://off/debian\nSuites: sid\nEnabled: no\n\n" +
				"Types: deb-src\nURIs: http://src/debian\n\n" +
				"types: deb deb-src\n# a comment\nURIs:\n http://b/debian\n http://c/debian\nSuites: sid\n\nTypes: deb\nURIs: http://b/debian-security/\n",
			"sources.list.d/notes.txt": "deb http://d/debian sid main\n",
		}, mirrors{"http://b/debian", "http://b/debian-security"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			etc := t.TempDir()
			for name, text := range tt.files {
				name = filepath.Join(etc, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := hostMirrors(etc); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestDependencies(t *testing.T) {
	got := dependencies("x\n  PreDepends: a:any\n  Depends: linux-image-1\n |Depends: b\n  Depends: c\n  Depends: <p>\n    d\na\n  Depends: b\n<p>\n")
	if want := map[string][]string{"x": {"a", "linux-image-1", "b", "c"}, "a": {"b"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, want := range map[string]bool{"linux-image-6.1.0-50-cloud-amd64": true, "linux-binary-7.2.13+deb14-amd64": true, "linux-image-cloud-amd64": false, "linux-initramfs-tool": false} {
		if kernelPart.MatchString(name) != want {
			t.Errorf("kernelPart of %s is not %v", name, want)
		}
	}
}
