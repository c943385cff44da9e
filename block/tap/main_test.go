package tap

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestMain(m *testing.M) {
	Helper()
	if target, ok := os.LookupEnv(readerRole); ok {
		os.Exit(reader(target))
	}
	if what, ok := os.LookupEnv(serverRole); ok {
		os.Exit(server(what))
	}
	if filepath.Base(os.Args[0]) == "virsh" {
		os.Exit(virsh(os.Args[1:]))
	}
	os.Exit(m.Run())
}

func jsonInto(s string, v any) error { return json.Unmarshal([]byte(s), v) }
