package resume

import (
	"os"
	"testing"
)

// TestOtherKind: a helper is of one kind only, whichever kind the program asks for first. What another kind's would do to the
// guest is nothing, and it would stay paused for ever.
func TestOtherKind(t *testing.T) {
	t.Setenv(variable, "xen:5")
	Run("qemu", func(string) bool { t.Error("qemu's helper took a domain of Xen"); return true })
	if got := os.Getenv(variable); got != "xen:5" {
		t.Errorf("%q is left for Xen's", got)
	}
}
