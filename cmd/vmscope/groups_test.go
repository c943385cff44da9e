package main

import (
	"strings"
	"testing"
)

// TestGroups gives flags that do not go together, none where one is wanted, and
// some without what they need.
func TestGroups(t *testing.T) {
	for _, c := range []struct {
		args string
		want string
	}{
		{"check web1 --explain x --watch 1s", "--explain and --watch do not go together"},
		{"check web1 --bundle x --explain y --only text", "--bundle and --explain and --only do not go together"},
		{"scan web1", "scan needs --pattern or --rules"},
		{"scan web1 --pattern x --all --pid 1", "--all and --pid do not go together"},
		{"read web1 --pa 1 --va 2", "--pa and --va do not go together"},
		{"check web1 --kernel=", "--kernel needs a name"},
		{"check web1 --kernel x --modules-dir=", "--modules-dir needs a name"},
		{"check web1 --state=", "--state needs a name"},
	} {
		_, stderr, status := run(t, strings.Fields(c.args)...)
		if status != statusFailed || !strings.HasPrefix(stderr, "vmscope: "+c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: status %d, %q, want %q", c.args, status, stderr, c.want)
		}
	}
}
