package tap

import (
	"encoding/json"
	"os"
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
	os.Exit(m.Run())
}

func jsonInto(s string, v any) error { return json.Unmarshal([]byte(s), v) }
