package detect

import (
	"strings"
	"testing"
)

func TestFiller(t *testing.T) {
	for text, want := range map[string]bool{
		strings.Repeat("\xcc", 4096):                                       true,
		strings.Repeat("\x00", 100):                                        true,
		strings.Repeat("\xcc", 9) + strings.Repeat("\x00", 9):              true,
		strings.Repeat("\x00", 9) + strings.Repeat("\xcc", 9):              true,
		strings.Repeat("\x90", 4096):                                       false, // one byte throughout, and no filler
		strings.Repeat("\xff", 1):                                          false,
		"\xcc\xcc\xc3":                                                     false,
		"\x00\x00\xcc\x00":                                                 false,
		"\x90\x90\xc3" + strings.Repeat("\xcc", 100):                       false,
		strings.Repeat("\xcc", 4000) + "\xe9" + strings.Repeat("\xcc", 95): false,
	} {
		if got := filler([]byte(text)); got != want {
			t.Errorf("%q…: %v, want %v", text[:min(len(text), 12)], got, want)
		}
	}
}
