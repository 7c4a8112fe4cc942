package gateway

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// ConfigBytes is a size in bytes. In the file it is a number of bytes or a string with
// a unit: B, kB and MB count in thousands, KiB and MiB in 1024.
type ConfigBytes int64

// String writes the size with the largest unit that divides it.
func (b ConfigBytes) String() string {
	switch {
	case b != 0 && b%(1<<20) == 0:
		return strconv.FormatInt(int64(b>>20), 10) + "MiB"
	case b != 0 && b%(1<<10) == 0:
		return strconv.FormatInt(int64(b>>10), 10) + "KiB"
	}
	return strconv.FormatInt(int64(b), 10) + "B"
}

var cfgByteUnits = []struct {
	suffix string
	factor float64
}{{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9}, {"b", 1}, {"", 1}}

func cfgParseBytes(s string) (ConfigBytes, error) {
	text := strings.ToLower(strings.TrimSpace(s))
	for _, u := range cfgByteUnits {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil {
			break
		}
		return cfgBytesOf(n * u.factor)
	}
	return 0, errors.New(`expected a size like "64KiB"`)
}

func cfgBytesOf(n float64) (ConfigBytes, error) {
	if !(n >= 0 && n < 1<<62) || n != math.Trunc(n) {
		return 0, errors.New("expected a whole number of bytes, not negative")
	}
	return ConfigBytes(n), nil
}

func cfgParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(strings.TrimSpace(s))
	if err != nil {
		return 0, errors.New(`expected a duration like "1m30s" (units: ms, s, m, h)`)
	}
	if d < 0 {
		return 0, errors.New("a duration must not be negative")
	}
	return d, nil
}

func cfgDurationOf(seconds float64) (time.Duration, error) {
	if !(seconds >= 0 && seconds < float64(math.MaxInt64)/float64(time.Second)) {
		return 0, errors.New("expected a number of seconds, not negative")
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

func cfgWholeOf(n float64) (int64, error) {
	if n != math.Trunc(n) || math.Abs(n) > 1<<53 {
		return 0, fmt.Errorf("expected whole number, found %v", n)
	}
	return int64(n), nil
}

// cfgDurationText writes a duration without the zeros that Go adds ("5m0s").
func cfgDurationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// cfgSetText sets a scalar (or a list of strings, separated by commas) from text: a
// default, a flag, or an interpolated string where something else is expected.
func cfgSetText(v reflect.Value, text string) error {
	switch {
	case v.Type() == cfgDurationType:
		if n, err := strconv.ParseFloat(text, 64); err == nil {
			d, err := cfgDurationOf(n)
			v.SetInt(int64(d))
			return err
		}
		d, err := cfgParseDuration(text)
		v.SetInt(int64(d))
		return err
	case v.Type() == cfgBytesType:
		b, err := cfgParseBytes(text)
		v.SetInt(int64(b))
		return err
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
		return nil
	case reflect.Bool:
		switch text {
		case "true", "false":
			v.SetBool(text == "true")
			return nil
		}
		return errors.New("expected true or false")
	case reflect.Int:
		n, err := strconv.ParseInt(text, 0, 64)
		if err != nil {
			return errors.New("expected whole number")
		}
		v.SetInt(n)
		return nil
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.String {
			list := []string{}
			for item := range strings.SplitSeq(text, ",") {
				if item = strings.TrimSpace(item); item != "" {
					list = append(list, item)
				}
			}
			v.Set(reflect.ValueOf(list))
			return nil
		}
	}
	return fmt.Errorf("%s cannot be given as text", cfgTypeName(v.Type()))
}

// cfgCompare compares a number, duration or size with the text of a bound.
func cfgCompare(v reflect.Value, bound string) int {
	limit := reflect.New(v.Type()).Elem()
	if err := cfgSetText(limit, bound); err != nil {
		panic(fmt.Sprintf("config: bound %q: %v", bound, err)) // a test reads every tag
	}
	switch a, b := v.Int(), limit.Int(); {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
