package gateway
import ("testing";"strings";"time";"fmt")
func TestConfigPerfTmp(t *testing.T) {
 n := 9_900_000
 for name, doc := range map[string]string{
  "nums": "{mcp:{x:["+strings.Repeat("1,",n/2)+"]}}",
  "caps": "{agents:{list:[{id:'a',capabilities:["+strings.Repeat("'',",n/3)+"]}]}}",
  "unknown": "{"+strings.Repeat("a:1,",n/4)+"}",
  "mesh": "{"+strings.Repeat("mesh:{},",n/8)+"}",
  "agents": "{agents:{list:["+strings.Repeat("{},",n/3/20)+"]}}",
  "vars": "{mcp:{x:'"+strings.Repeat("${A}",n/4)+"'}}",
  "key": "{"+strings.Repeat("a",n)+":1}",
  "hex": "{mcp:{a:0x"+strings.Repeat("f",n)+"}}",
  "dec": "{mcp:{a:"+strings.Repeat("1",300)+"."+strings.Repeat("9",n)+"}}",
  "str": "{mesh:{gateway:'"+strings.Repeat("\\n",n/2)+"'}}",
 } {
  t0:=time.Now()
  c,w,err:=ParseConfig("c",[]byte(doc),configEnv("A=1"))
  var e2 error
  if err==nil { c.Normalize(); e2=c.Validate() }
  s:=""; if err!=nil {s=err.Error()}; if e2!=nil {s+="|"+e2.Error()}
  fmt.Println(name,time.Since(t0).Round(time.Millisecond),len(w),len(s), s[:min(len(s),150)])
 }
}
