package vmscope_test

import (
	"os/exec"
	"strings"
	"testing"
)

// TestFailuresTold checks what the end of a test run's log says of each way to fail.
func TestFailuresTold(t *testing.T) {
	const log = `# vmscope/c [vmscope/c.test]
c/c_test.go:3:34: undefined: nothing
=== RUN   TestGood
    a_test.go:3: noise
--- PASS: TestGood (0.00s)
=== RUN   TestMany
MANY=== RUN   TestPar
=== RUN   TestPar/x
=== PAUSE TestPar/x
=== RUN   TestPar/y
=== PAUSE TestPar/y
=== CONT  TestPar/x
    a_test.go:5: noise
=== CONT  TestPar/y
    a_test.go:5: why y fails
--- FAIL: TestPar (0.00s)
    --- PASS: TestPar/x (0.00s)
    --- FAIL: TestPar/y (0.00s)
FAIL
FAIL	vmscope/a	0.006s
=== RUN   TestGood
    b_test.go:3: noise
--- PASS: TestGood (0.00s)
=== RUN   TestSleeps
    b_test.go:4: what it did last
panic: test timed out after 2s
	running tests:
		TestSleeps (2s)
FAIL	vmscope/b	2.008s
FAIL	vmscope/c [build failed]
=== RUN   TestKilled
    d_test.go:4: last words
signal: killed
FAIL	vmscope/d	2.008s
ok  	vmscope/e	0.1s
`
	const want = `
--- FAIL: TestMany (vmscope/a)
LAST
--- FAIL: TestPar (vmscope/a)

--- FAIL: TestPar/y (vmscope/a)
    a_test.go:5: why y fails

--- FAIL: TestSleeps (vmscope/b)
    b_test.go:4: what it did last
panic: test timed out after 2s
	running tests:
		TestSleeps (2s)

--- FAIL: TestKilled (vmscope/d)
    d_test.go:4: last words
signal: killed

not built:
# vmscope/c [vmscope/c.test]
c/c_test.go:3:34: undefined: nothing
`
	many := strings.Repeat("    a_test.go:4: early\n", 60) + strings.Repeat("    a_test.go:4: late\n", 38)
	const broken = "    a_test.go:4: broken\n        why\n"
	awk := exec.Command("awk", "-f", "scripts/failures.awk")
	awk.Stdin = strings.NewReader(strings.Replace(log, "MANY", many+broken+"--- FAIL: TestMany (0.00s)\n", 1))
	out, err := awk.CombinedOutput()
	if want := strings.Replace(want, "LAST", strings.Repeat("    a_test.go:4: late\n", 38)+broken, 1); err != nil || string(out) != want {
		t.Errorf("%v\ngot:\n%s\nwant:\n%s", err, out, want)
	}
}
