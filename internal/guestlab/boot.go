package guestlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// RequireGuests is the environment variable that, set to 1, turns a skip for want of a program into a failure: a
// continuous-integration run must not pass because it tested nothing.
const RequireGuests = "VMSCOPE_REQUIRE_GUESTS"

// KernelsVariable is the environment variable that chooses what TestKernels returns: "all", or names with commas between.
const KernelsVariable = "VMSCOPE_KERNELS"

// TestKernels returns the kernels for PCs of 64 bits that a test which goes over several shall use. By default these are two, of different
// ages, since each boot costs seconds; $VMSCOPE_KERNELS asks for others. See OtherKernels for those of other processors.
func TestKernels(tb testing.TB) []string {
	tb.Helper()
	switch v := os.Getenv(KernelsVariable); v {
	case "":
		return []string{"bookworm-cloud", "sid-cloud"}
	case "all":
		return Kernels()
	default:
		names := strings.Split(v, ",")
		for _, name := range names {
			if _, err := lookupSource(name); err != nil {
				tb.Fatalf("%s: %v", KernelsVariable, err)
			}
		}
		return slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(Kernels(), name) })
	}
}

// Boot starts a guest for a test or benchmark and closes it when that ends. Under -short, and if the host lacks a
// program or its libvirt does not start guests, or the kernel was not built, the test is skipped (see Skip); any other failure to boot fails it with the end of the console's log.
func Boot(tb testing.TB, cfg Config) *Guest {
	tb.Helper()
	if testing.Short() {
		Skip(tb, "boots a guest; not under -short")
	}
	if cfg.Name == "" {
		cfg.Name = guestName(tb.Name())
	}
	g, err := Start(context.Background(), cfg)
	switch {
	case errors.Is(err, ErrNotBuilt):
		Skip(tb, err.Error())
	case errors.Is(err, ErrMissing):
		SkipOrFail(tb, err.Error())
	case errors.Is(err, errNoDomain):
		Skip(tb, err.Error())
	case err != nil:
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("guest %s (%s)%s", g.Name(), g.Kernel().Release, g.tail())
		}
		g.Close()
	})
	return g
}

// Skip skips a test and leaves one line about it on standard output, also without -v, so that the list of all tests
// that were skipped, with reasons, can be had from any run: grep '^guestlab: SKIP'.
func Skip(tb testing.TB, reason string) {
	tb.Helper()
	fmt.Fprintf(os.Stdout, "guestlab: SKIP %s: %s\n", tb.Name(), reason)
	tb.SkipNow()
}

// SkipOrFail is Skip, unless the environment demands guests.
func SkipOrFail(tb testing.TB, reason string) {
	tb.Helper()
	if os.Getenv(RequireGuests) == "1" {
		tb.Fatalf("%s=1, but: %s", RequireGuests, reason)
	}
	Skip(tb, reason)
}

// guestName makes a name for QEMU out of a test's, unique for the guests of this process.
func guestName(test string) string {
	clean := []byte(test)
	for i, c := range clean {
		if c != '-' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			clean[i] = '-'
		}
	}
	return fmt.Sprintf("%s-%d-%d", clean[:min(len(clean), 40)], os.Getpid(), guestCount.Add(1))
}
