package tap

import (
	"path/filepath"
	"testing"
)

// TestUnreachable: a disk's content that is out of reach is an error each time, and no connection of a kind that is nil:
// somebody may stop QEMU's NBD server.
func TestUnreachable(t *testing.T) {
	nowhere := filepath.Join(t.TempDir(), "s")
	for name, m := range map[string]Content{
		"uri": {URI: "nbd+unix:///?socket=" + nowhere}, "socket": {Socket: nowhere, Export: "e"}, "file": {File: nowhere},
	} {
		if b, err := dialBase(t.Context(), m); b != nil || err == nil {
			t.Errorf("%s: %#v, %v", name, b, err)
		}
	}
}
